"""A reader written from docs/bundle-format.md and docs/codecs.md alone, with nothing of `slideway.bundles` in it."""

import hashlib
import re
import struct
from pathlib import Path

import imagecodecs
import msgpack
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

DOCUMENT = Path(__file__).parents[2] / "docs" / "bundle-format.md"


def read_container(content):
    """Lock and parts [(name, tier, optional, bytes)], hashes and signature checked."""
    magic, major, _, n_list = struct.unpack_from("<8sHHI", content)
    assert magic == bytes.fromhex("89535742 0d0a1a0a")
    assert major == 1
    at = 16 + n_list
    listing = msgpack.unpackb(content[16:at])
    id_ = content[at : at + 32]
    assert hashlib.sha256(content[:at]).digest() == id_
    seal, at = content[at + 32], at + 33
    if seal == 1:
        key = Ed25519PublicKey.from_public_bytes(content[at : at + 32])
        key.verify(content[at + 32 : at + 96], b"slideway-bundle/1\n" + id_)
        at += 96
    parts = []
    for name, tier, optional, n_bytes, sha256 in listing["parts"]:
        part = content[at : at + n_bytes]
        if len(part) < n_bytes:
            break
        assert hashlib.sha256(part).digest() == sha256
        parts.append((name, tier, optional, part))
        at += n_bytes
    return listing.get("lock"), parts


def unlock(lock, parts, private):
    assert lock["suite"] == "hpke-x25519-sha256-chacha20poly1305"
    assert lock["receiver"] == hashlib.sha256(private.public_key().public_bytes_raw()).hexdigest()[:16]
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
    cipher = ChaCha20Poly1305(suite.decrypt(lock["key"], private, info=b"slideway-bundle/1"))
    for i, (name, tier, optional, part) in enumerate(parts):
        nonce = bytes(4) + struct.pack(">Q", i)
        yield name, tier, optional, cipher.decrypt(nonce, part, f"{name}\n{tier}\n{int(optional)}".encode())


class Sections:
    def __init__(self, run):
        self.run, self.at = run, 0

    def take(self, dtype, *shape):
        (n_packed,) = struct.unpack_from("<I", self.run, self.at)
        packed = self.run[self.at + 4 : self.at + 4 + n_packed]
        self.at += 4 + n_packed
        raw = imagecodecs.zstd_decode(packed) if n_packed else b""
        values = np.frombuffer(raw, dtype)
        assert values.size == int(np.prod(shape))
        return values.reshape(shape)

    def take_planes(self, rows, n):
        (planes,) = self.take("u1", 1)
        bits = self.take("u1", planes, rows, -(-n // 8))
        folded = np.zeros((rows, n), np.int64)
        for i, plane in enumerate(bits):
            folded += np.unpackbits(plane, axis=1)[:, :n].astype(np.int64) << i
        return np.where(folded % 2, -(folded + 1) // 2, folded // 2)

    def finish(self):
        assert self.at == len(self.run)


def read_places(run, n):
    sections = Sections(run)
    way, m = struct.unpack("<BI", sections.take("u1", 5).tobytes())
    if way == 0:
        numbers, number, shift = [], 0, 0
        for byte in sections.take("u1", m).tolist():
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                numbers.append(-(number + 1) // 2 if number % 2 else number // 2)
                number, shift = 0, 0
        places = np.cumsum(np.array(numbers).reshape(2, n), axis=1).T
    else:
        column, row, columns, rows = struct.unpack("<iiII", sections.take("u1", 16).tobytes())
        bits = np.unpackbits(sections.take("u1", -(-columns * rows // 8)))[: columns * rows]
        cells = np.flatnonzero(bits)
        places = np.stack([column + cells % columns, row + cells // columns], axis=1)
    sections.finish()
    assert len(places) == n
    return places


def read_axes(part, fingerprint):
    head, body = read_head(part)
    sections = Sections(body)
    scale = sections.take("<f2", head["axes"]).astype(np.float32)
    axes = sections.take("i1", head["axes"], head["width"]) * scale[:, None]
    sections.finish()
    digest = hashlib.sha256(fingerprint.hex().encode() + axes.astype("<f4").tobytes() + b"-")
    return digest.hexdigest()[:16], axes


def read_head(part):
    at = 2 + struct.unpack_from("<H", part)[0]
    return msgpack.unpackb(part[2:at]), part[at:]


def read_vectors(head, run, shared):
    n, w, header = head["tiles"], head["width"], head["header"]
    sections = Sections(run)
    if header["clamped"]:
        assert np.unpackbits(sections.take("u1", -(-n // 8)))[:n].sum() == header["clamped"]
    if head["codec"] == "int8":
        low, step = sections.take("<f2", 2, w).astype(np.float64)
        vectors = low + step * sections.take("u1", w, n).T
    else:
        assert head["codec"].startswith("steps")
        centre = sections.take("<f2", w).astype(np.float64)
        k = header["axes"]
        if header["axes_inside"]:
            scale = sections.take("<f2", k).astype(np.float64)
            axes = scale[:, None] * sections.take("i1", k, w)
        else:
            assert header["basis"] == shared[0]
            axes = shared[1][:k]
        along = sections.take_planes(k, n).T
        vectors = centre + header["step"] * (along @ axes + sections.take_planes(w, n).T)
    sections.finish()
    return np.clip(vectors, -65_504, 65_504)


def read_tiles(part, shared):
    head, body = read_head(part)
    n, (a, b) = head["tiles"], head["bytes"]
    places = read_places(body[:a], n)
    vectors = read_vectors(head, body[a : a + b], shared)
    facts = Sections(body[a + b :])
    reason, since, focus = (facts.take("u1", n) for _ in range(3))
    low, step = head["focus"]
    tiles = {
        "place": places,
        "vectors": vectors,
        "reason": reason,
        "since": since,
        "focus": np.where(focus == 255, np.nan, low + step * focus),
        "weight": np.ones(n),
        "novelty": np.full(n, np.nan),
    }
    if head["has_novelty"]:
        codes = facts.take("u1", n)
        tiles["novelty"] = np.where(codes == 255, np.nan, codes / 2)
    if head["is_sampled"]:
        tiles["edge reason"], tiles["weight"] = facts.take("u1", n), facts.take("<f4", n).astype(float)
    facts.finish()
    return tiles, bool(header_axes(head)), "basis" in head["header"]


def header_axes(head):
    return head["header"].get("axes_inside") and head["header"].get("axes")


def read_independently(content, private=None):
    """Summary, all tiles row-major, and which kinds of axes were met."""
    lock, parts = read_container(content)
    parts = list(parts if lock is None else unlock(lock, parts, private))
    contents = {name: part for name, _, _, part in parts}
    summary = msgpack.unpackb(imagecodecs.zstd_decode(contents["summary"]))
    shared = read_axes(contents["axes"], summary["fingerprint"]) if "axes" in contents else None
    read = [read_tiles(part, shared) for name, part in contents.items() if name.startswith("tiles-")]
    tiles = {key: np.concatenate([one[0][key] for one in read]) for key in read[0][0]}
    own, own_weight = tiles["weight"], tiles["weight"]
    missing = summary["tissue_tiles"] - own.sum()
    if len(own) < summary["tiles"]:
        others = tiles["since"] > len(read) - 1
        others = others if others.any() else ~others
        own_weight = np.where(others, own * (1 + missing / own[others].sum()), own)
    tiles["weight"] = own_weight
    order = np.lexsort((tiles["place"][:, 0], tiles["place"][:, 1]))
    met = {"own": any(one[1] for one in read), "shared": any(one[2] for one in read)}
    return summary, {key: values[order] for key, values in tiles.items()}, met


def require_same(content, key=None, private=None):
    """What our reader says, to the last digit of float16."""
    from slideway.bundles.read import read_bundle

    bag = read_bundle(content, key=key).bag()
    summary, tiles, met = read_independently(content, private)
    assert summary["slide_sha256"].hex() == bag.slide_sha256
    assert np.array_equal(tiles["place"], bag.grid.column_row)
    assert np.allclose(tiles["vectors"], bag.vectors.astype(float), rtol=2**-10, atol=1e-4)
    assert np.allclose(tiles["focus"], bag.focus, equal_nan=True)
    assert np.allclose(tiles["weight"], bag.weights, rtol=1e-5)
    corner = np.rint(tiles["place"] * (summary["tile_px"] * summary["tile_mpp"] / summary["mpp"]))
    assert np.array_equal(corner, bag.grid.xy_level0_px)
    return met


@pytest.mark.parametrize("is_sampled", [False, True])
@pytest.mark.parametrize("codec", ["steps-fine", "steps", "int8"])
def test_the_document_suffices_to_read_whole_bundles(toy, short_chunks, codec, is_sampled):
    from slideway.bundles.build import build_bundle

    def spoil(bag):
        bag.vectors[5] = np.nan
        bag.focus[::7] = np.nan
        return bag

    content = build_bundle(toy(200, 24, is_sampled=is_sampled, edit_bag=spoil), codec=codec).pack()
    met = require_same(content)
    assert met["shared"] == (codec != "int8")


def test_the_document_suffices_to_read_axes_inside_a_part(toy):
    from slideway.bundles.build import build_bundle

    assert require_same(build_bundle(toy(150, 64), codec="steps").pack())["own"]


def test_the_document_suffices_to_read_prefixes_with_their_weights(toy, short_chunks):
    from slideway.bundles.build import build_bundle

    for is_sampled in (False, True):
        content = build_bundle(toy(is_sampled=is_sampled)).pack()
        for cut in (len(content) - 1, len(content) - 1_500, len(content) - 2_600):
            require_same(content[:cut])


def test_the_document_suffices_to_open_a_locked_and_signed_bundle(built):
    from slideway.bundles.container import pack_container
    from slideway.bundles.lock import lock_parts
    from slideway.registry.keys import SigningKey

    private = X25519PrivateKey.generate()
    parts, lock = lock_parts(built.parts, private.public_key())
    content = pack_container(parts, lock=lock, signer=SigningKey(Ed25519PrivateKey.generate()))
    require_same(content, key=private, private=private)


def test_the_example_in_the_document_reads_as_the_document_says():
    example = re.search(r"```hex\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S)
    content = bytes.fromhex(example.group(1))
    summary, tiles, _ = read_independently(content)
    assert summary["tiles"] == 2
    assert tiles["place"].tolist() == [[3, 1], [4, 1]]
    assert np.abs(tiles["vectors"] - [[0, 1, 2, 3], [255, 1, -2, 3.5]]).max() < 0.51
    assert tiles["focus"][0] == 100
    assert np.isnan(tiles["focus"][1])
    require_same(content)
    for at, start in ((152, b"\x28\xb5\x2f\xfd"), (16, b"\x81\xa5parts"), (119, bytes.fromhex("5470ca2e92fb7002"))):
        assert content[at : at + len(start)] == start
    assert struct.unpack_from("<H", content, 468) == (111,)
    assert content[585:589] == b"\x28\xb5\x2f\xfd"
