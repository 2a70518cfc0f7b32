"""What every facet of a transaction shares: whose rows, what time it is, and how a row becomes a record."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Insert,
    Row,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite

from slideway.core.errors import UnknownRecordError
from slideway.store.schema import canonical_json

Clock = Callable[[], int]  # UTC now, in milliseconds
Record = TypeVar("Record")
PAGE = 1000


def hash_json(value: Any) -> str:
    """Sha256 of the canonical JSON of a value, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


class Facet:
    """One table's methods inside one transaction of one tenant; without a tenant, the operator's view of all."""

    def __init__(self, connection: Connection, tenant: str | None, clock: Clock) -> None:
        self._connection = connection
        self._tenant = tenant
        self._clock = clock

    @property
    def _own(self) -> str:
        """The tenant; single rows are read and written for one tenant only."""
        if self._tenant is None:
            raise ValueError("this needs one tenant: take `of(tenant)` of the transaction of all")
        return self._tenant

    def _mine(self, table: Table) -> ColumnElement[bool]:
        """The filter that every list and every count carries."""
        return true() if self._tenant is None else table.c.tenant == self._tenant

    def _key(self, table: Table, **key: Any) -> ColumnElement[bool]:
        """The filter of a single row, always of one tenant."""
        return and_(table.c.tenant == self._own, *(table.c[name] == value for name, value in key.items()))

    def _insert(self, table: Table, **values: Any) -> bool:
        """Insert a row of this tenant; False when a row of its key is already there."""
        statement = _insert_once(table, self._connection.dialect.name)
        options = {"preserve_rowcount": True}
        return (
            self._connection.execute(statement, {"tenant": self._own, **values}, execution_options=options).rowcount
            == 1
        )

    def _change(self, table: Table, where: ColumnElement[bool], **values: Any) -> int:
        """Update rows of this tenant; how many there were."""
        statement: Update = update(table).where(self._mine(table), where).values(**values)
        return self._connection.execute(statement).rowcount

    def _find(
        self, record: type[Record], table: Table, *where: ColumnElement[bool], lock: bool = False
    ) -> Record | None:
        """The one row that fits, or None; with `lock`, held until the transaction ends (PostgreSQL).

        The lock lets others refer to the row meanwhile: no key of ours ever changes.
        """
        statement = _select(record, table).where(self._mine(table), *where)
        row = self._connection.execute(statement.with_for_update(key_share=True) if lock else statement).first()
        return None if row is None else _as_record(record, row)

    def _find_key(self, record: type[Record], table: Table, *, lock: bool = False, **key: Any) -> Record | None:
        """The row of a key of this tenant, or None; as `_find`, several times cheaper: its statement is made once."""
        made_for: Any = record  # mypy takes the class of a dataclass with equality for unhashable
        statement = _select_one(made_for, table, tuple(key), lock)
        values = {"own_tenant": self._own} | {f"key_{name}": value for name, value in key.items()}
        row = self._connection.execute(statement, values).first()
        return None if row is None else _as_record(record, row)

    def _add(self, record: type[Record], table: Table, key: Mapping[str, Any], **values: Any) -> tuple[Record, bool]:
        """Insert a row of this tenant, or find the one of its key; whether it is new. One statement where it is."""
        made_for: Any = record
        statement = _insert_returning(made_for, table, self._connection.dialect.name)
        row = self._connection.execute(statement, {"tenant": self._own, **key, **values}).first()
        return (self._get(record, table, **key), False) if row is None else (_as_record(record, row), True)

    def _replace(self, record: type[Record], table: Table, key: Mapping[str, Any], **values: Any) -> Record | None:
        """Update the row of a key of this tenant; what it is then, or None when no row fits.

        The key may name more than the primary one: what the row must still be. The statement is made once.
        """
        made_for: Any = record
        statement = _update_returning(made_for, table, tuple(key), tuple(values))
        bound = {"own_tenant": self._own} | {f"key_{name}": value for name, value in key.items()}
        row = self._connection.execute(
            statement, bound | {f"new_{name}": value for name, value in values.items()}
        ).first()
        return None if row is None else _as_record(record, row)

    def _get(self, record: type[Record], table: Table, **key: Any) -> Record:
        """The row of a key; an error that names the table and the key when it is not there."""
        found = self._find_key(record, table, lock=not self._is_reading, **key)
        if found is None:
            raise UnknownRecordError(f"{table.name}: nothing under {', '.join(map(str, key.values()))} for this tenant")
        return found

    @property
    def _is_reading(self) -> bool:
        return not self._connection.get_execution_options().get("slideway_writes", False)

    def _list(
        self,
        record: type[Record],
        table: Table,
        *where: ColumnElement[bool],
        order: Sequence[ColumnElement[Any]] = (),
        limit: int | None = None,
        skip_locked: bool = False,
    ) -> list[Record]:
        statement = _select(record, table).where(self._mine(table), *where).order_by(*order).limit(limit)
        if skip_locked:
            statement = statement.with_for_update(skip_locked=True, key_share=True)
        return [_as_record(record, row) for row in self._connection.execute(statement)]

    def _walk(
        self, record: type[Record], table: Table, counter: str, *where: ColumnElement[bool], after: int = 0
    ) -> Iterator[Record]:
        """All rows that fit, in the order of a counter: a thousand at a time, for there may be millions."""
        column = table.c[counter]
        while page := self._list(record, table, *where, column > after, order=[column.asc()], limit=PAGE):
            yield from page
            after = getattr(page[-1], counter)


def _select(record: type[Any], table: Table) -> Select[Any]:
    return select(*(table.c[field.name] for field in fields(record)))


@lru_cache(maxsize=256)
def _select_one(record: type[Any], table: Table, names: tuple[str, ...], lock: bool) -> Select[Any]:
    statement = _select(record, table).where(
        table.c.tenant == bindparam("own_tenant"), *(table.c[name] == bindparam(f"key_{name}") for name in names)
    )
    return statement.with_for_update(key_share=True) if lock else statement


@lru_cache(maxsize=64)
def _insert_returning(record: type[Any], table: Table, dialect: str) -> Any:
    return _insert_once(table, dialect).returning(*(table.c[field.name] for field in fields(record)))


@lru_cache(maxsize=256)
def _update_returning(record: type[Any], table: Table, key: tuple[str, ...], names: tuple[str, ...]) -> Any:
    here = [table.c[name] == bindparam(f"key_{name}", type_=table.c[name].type) for name in key]
    values = {name: bindparam(f"new_{name}", type_=table.c[name].type) for name in names}
    statement = update(table).where(table.c.tenant == bindparam("own_tenant"), *here).values(values)
    return statement.returning(*(table.c[field.name] for field in fields(record)))


@lru_cache(maxsize=64)
def _insert_once(table: Table, dialect: str) -> Insert:
    insert = insert_postgresql if dialect == "postgresql" else insert_sqlite
    return insert(table).on_conflict_do_nothing()


def _as_record(record: Callable[..., Record], row: Row[Any]) -> Record:
    return record(*row)  # columns were selected in the order of its fields
