"""The node's settings: `edge.toml`, frozen once read; a word that is not known is refused with its line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from slideway.core.errors import WrongUseError
from slideway.core.settings_file import read_sections

CONFIG = "edge.toml"
LOG_FORMS = ("text", "json")
GB = 10**9
MB = 10**6


@dataclass(frozen=True)
class WatchSettings:
    """`[watch]`: where scanners write.

    Attributes:
        folders: Folders that scanners write into, local or on a share; relative ones begin beside this file.
        poll_seconds: How often to look. Shares tell nobody of changes, so every folder is polled.
        quiet_seconds: A slide is taken in when nothing of it has changed for so long.
        urgent_folders: A slide below a folder of one of these names goes before all others.
    """

    folders: tuple[str, ...] = ("scans",)
    poll_seconds: float = 5.0
    quiet_seconds: float = 30.0
    urgent_folders: tuple[str, ...] = ("urgent",)


@dataclass(frozen=True)
class EdgeOwnSettings:
    """`[edge]`: the node itself.

    Attributes:
        log: Form of the log's lines: `text` for people, `json` for programs (one object a line).
        ask_when_referred: Ask a specialist by itself when a slide ends as referred, if the policy lets opinions leave.
    """

    log: str = "text"
    ask_when_referred: bool = False


@dataclass(frozen=True)
class IntakeSettings:
    """`[intake]`: what a slide's file name tells.

    Attributes:
        case_pattern: Regular expression whose group `case` is the accession number in a file's name; empty for none.
    """

    case_pattern: str = ""


@dataclass(frozen=True)
class ReadingSettings:
    """`[reading]`: how slides are read.

    Attributes:
        encoder: Id of an installed encoder, or a folder with a model card.
        engine: `onnxruntime` or `openvino`; empty takes the one measured fastest here.
        profile: How much is read: `standard`, `thrifty` or `thorough` (docs/profiles.md).
        heads: Ids of heads that also speak as research opinions, whether in force or not.
        site: Where in the body this laboratory's tissue comes from, when it is always the same; empty when not.
        estimate_mpp: Accept an estimate when a slide states no microns per pixel; every output is marked.
        workers: Slides that are read at a time.
        threads: Cores for each worker; 0 shares all cores among them.
        slide_seconds: A reading that takes longer is stopped and tried again.
        lease_seconds: A worker that is not heard of for so long loses its slide to another.
        attempts: After so many failures a slide is rejected, with the reason.
    """

    encoder: str = "slideway-small"
    engine: str = ""
    profile: str = "standard"
    heads: tuple[str, ...] = ()
    site: str = ""
    estimate_mpp: bool = False
    workers: int = 1
    threads: int = 0
    slide_seconds: float = 3600.0
    lease_seconds: float = 120.0
    attempts: int = 4


@dataclass(frozen=True)
class DiskSettings:
    """`[disk]`: how much may lie here.

    Attributes:
        folder: Where the node keeps its store, keys, answers and what waits to leave.
        budget_gb: Most that this folder may hold; above it no slide is taken in, until there is room.
        min_free_gb: With less free on its disk no slide is taken in, until there is room.
        reserve_mb: A file that is given up when the disk is full, so that what is in hand can still be written down.
        kept_days: Days of service that answers of ended slides are kept; then what the cloud has acknowledged goes.
    """

    folder: str = "state"
    budget_gb: float = 50.0
    min_free_gb: float = 5.0
    reserve_mb: int = 64
    kept_days: float = 90.0


@dataclass(frozen=True)
class PolicySettings:
    """`[policy]`: what may leave.

    Attributes:
        file: The policy file; without one nothing leaves (docs/policy.md).
        receiver: What the policy calls the cloud.
    """

    file: str = "policy.toml"
    receiver: str = "cloud"


@dataclass(frozen=True)
class CloudSettings:
    """`[cloud]`: how the line is used.

    Attributes:
        status_minutes: How often the node says how it is.
        answer_alone_after_hours: Without the cloud's answer for so many hours of service, the edge's opinion decides.
        bytes_per_second: Limit on what is sent; 0 for none.
        night_window: Hours for large tiers, as in `20:00-06:00`; empty for any hour.
        proxy: Address of a proxy; empty for what the environment says (`HTTPS_PROXY`).
        poll_seconds: How often to look for what is to be sent.
        wait_seconds: How long one request waits at the cloud for its messages.
    """

    status_minutes: float = 5.0
    answer_alone_after_hours: float = 24.0
    bytes_per_second: float = 0.0
    night_window: str = ""
    proxy: str = ""
    poll_seconds: float = 2.0
    wait_seconds: float = 25.0


@dataclass(frozen=True)
class WebSettings:
    """`[web]`: the pages.

    Attributes:
        host: Address to listen on. The pages ask for no password: leave it on loopback.
        port: Port to listen on; 0 for any free one.
        names: Further names under which the pages may be asked for; others are refused.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class EdgeSettings:
    """All settings of a node.

    Attributes:
        root: Where `edge.toml` lies; relative paths begin here.
        edge: The node itself.
        watch: Where scanners write.
        intake: What a slide's file name tells.
        reading: How slides are read.
        disk: How much may lie here.
        policy: What may leave.
        cloud: How the line is used.
        web: The pages.
    """

    root: Path
    edge: EdgeOwnSettings = field(default_factory=EdgeOwnSettings)
    watch: WatchSettings = field(default_factory=WatchSettings)
    intake: IntakeSettings = field(default_factory=IntakeSettings)
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    disk: DiskSettings = field(default_factory=DiskSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    cloud: CloudSettings = field(default_factory=CloudSettings)
    web: WebSettings = field(default_factory=WebSettings)

    def __post_init__(self) -> None:
        least = {
            "[reading] workers": (self.reading.workers, 1),
            "[reading] attempts": (self.reading.attempts, 1),
            "[reading] threads": (self.reading.threads, 0),
            "[watch] poll_seconds": (self.watch.poll_seconds, 0.05),
            "[watch] quiet_seconds": (self.watch.quiet_seconds, 0.0),
            "[disk] reserve_mb": (self.disk.reserve_mb, 0),
            "[cloud] poll_seconds": (self.cloud.poll_seconds, 0.05),
            "[reading] lease_seconds": (self.reading.lease_seconds, 1.0),
        }
        for name, (value, bound) in least.items():
            if value < bound:
                raise WrongUseError(f"{name} = {value}: at least {bound}")
        if self.edge.log not in LOG_FORMS:
            raise WrongUseError(f"[edge] log = {self.edge.log!r}: one of {', '.join(LOG_FORMS)}")
        _ = self.case_pattern

    @property
    def case_pattern(self) -> re.Pattern[str] | None:
        """Where in a file's name the accession number stands; None when nowhere.

        Raises:
            WrongUseError: It is no regular expression with a group `case`.
        """
        text = self.intake.case_pattern
        if not text:
            return None
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise WrongUseError(f"[intake] case_pattern: no regular expression ({error})") from error
        if "case" not in pattern.groupindex:
            raise WrongUseError(r"[intake] case_pattern has no group `case`; write one, as in '(?P<case>S\d\d-\d+)'")
        return pattern

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders that scanners write into."""
        return tuple((self.root / folder).resolve() for folder in self.watch.folders)

    @property
    def policy_file(self) -> Path:
        """The policy file."""
        return self.root / self.policy.file

    @property
    def places(self) -> Places:
        """Where the node keeps what is its own."""
        return Places((self.root / self.disk.folder).resolve())


@dataclass(frozen=True)
class Places:
    """What lies where in a node's own folder.

    Attributes:
        folder: The folder.
    """

    folder: Path

    @property
    def store_url(self) -> str:
        """URL of the database."""
        return f"sqlite:///{self.folder / 'slideway.db'}"

    @property
    def keys(self) -> Path:
        """Folder of the private keys."""
        return self.folder / "keys"

    @property
    def endpoint(self) -> Path:
        """What is known of the cloud, written at enrolment."""
        return self.folder / "endpoint.toml"

    @property
    def answers(self) -> Path:
        """Output folders of readings, each named by its slide's hash."""
        return self.folder / "answers"

    @property
    def outgoing(self) -> Path:
        """Files that leave, each named by its hash."""
        return self.folder / "outgoing"

    @property
    def reserve(self) -> Path:
        """The file that is given up when the disk is full."""
        return self.folder / "reserve"

    @property
    def served(self) -> Path:
        """For how long this node has served, in seconds."""
        return self.folder / "served"

    @property
    def paused(self) -> Path:
        """There while the cloud's operator has paused reading."""
        return self.folder / "paused"

    @property
    def serving(self) -> Path:
        """Address of the pages while the node serves."""
        return self.folder / "serving.json"


SECTIONS = tuple(item.name for item in fields(EdgeSettings) if item.name != "root")


@dataclass(frozen=True)
class SettingNote:
    """One setting, for the example file and the docs.

    Attributes:
        section: Its table.
        key: Its name.
        default: Its default, as TOML writes it.
        words: What it does.
    """

    section: str
    key: str
    default: str
    words: str


def describe_settings() -> Iterator[SettingNote]:
    """Every setting with its default and what it does, in order."""
    types = get_type_hints(EdgeSettings)
    for section in SECTIONS:
        kind = types[section]
        words = _read_words(kind)
        for item in fields(kind):
            yield SettingNote(section, item.name, _as_toml(item.default), words[item.name])


def read_settings(path: Path) -> EdgeSettings:
    """Read `edge.toml`.

    Raises:
        WrongUseError: Not there, not TOML, or a word or value that is not understood; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows put a mark in front
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise WrongUseError(
            f"{path}: cannot be read ({why}); name yours with --config, or `slideway edge init FOLDER` writes one"
        ) from error
    return parse_settings(text, path.resolve().parent, path.name)


def parse_settings(text: str, root: Path, source: str = CONFIG) -> EdgeSettings:
    """Read settings from their text.

    Raises:
        WrongUseError: It is not understood to the last word.
    """
    types = get_type_hints(EdgeSettings)
    kinds = {name: types[name] for name in SECTIONS}
    return EdgeSettings(root=root, **read_sections(text, kinds, source=source))


def _read_words(kind: type[Any]) -> dict[str, str]:
    """What a class says of each attribute in its docstring."""
    words: dict[str, str] = {}
    key = ""
    for line in (inspect.getdoc(kind) or "").partition("Attributes:")[2].splitlines():
        if found := re.match(r" {4}(\w+): (.*)", line):
            key = found[1]
            words[key] = found[2]
        elif key and line.strip():
            words[key] += f" {line.strip()}"
    return words


def _as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{item}"' for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, int) else f"{value}"
