"""A signed package arrives exactly as it was signed, or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from slideway.core.errors import (
    BrokenPackageError,
    OutputError,
    SlidewayError,
    UntrustedEncoderError,
    UntrustedPackageError,
    WrongUseError,
)
from slideway.encoders import load_encoder
from slideway.registry import ModelCard, find_encoder
from slideway.registry.keys import (
    SigningKey,
    TrustedKey,
    in_groups,
    list_trusted,
    load_signing_key,
    make_signing_key,
    signing_key_path,
    trust_key,
    trusted_folder,
)
from slideway.registry.package import export_model, import_model, read_manifest, tar_header
from slideway.registry.store import install_model
from slideway.testing.encoders import ToyGraph, write_toy_encoder

pytestmark = pytest.mark.usefixtures("own_models")
KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
STRANGER = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))
TRUSTED = (KEY.public,)


@pytest.fixture
def package(toy: ModelCard, tmp_path: Path) -> Path:
    path = tmp_path / "toy.swm"
    export_model(toy, path, key=KEY)
    return path


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def pack(path: Path, content: dict[str, bytes], *, key: SigningKey | None = None) -> Path:
    """Write members as they are; with a key, signed anew: what a misused signer could do."""
    content = dict(content)
    if key is not None:
        content["manifest.sig"] = key.sign(content["manifest.json"])
        content["signer.pub"] = key.public.pem
    body = b"".join(tar_header(n, len(c)) + c + bytes(-len(c) % 512) for n, c in content.items())
    path.write_bytes(body + bytes(1024))
    return path


def with_manifest(package: Path, change) -> Path:
    content = members(package)
    manifest = json.loads(content["manifest.json"])
    change(manifest)
    return pack(package, {**content, "manifest.json": json.dumps(manifest).encode()}, key=KEY)


def is_untouched(models: Path) -> bool:
    return not models.exists() or not list(models.iterdir())


def test_package_brings_the_very_model(package: Path, toy: ModelCard, own_models: Path) -> None:
    card = import_model(package, trusted=TRUSTED, check=load_encoder)
    assert card == replace(toy, folder=own_models / "toy")
    assert find_encoder("toy").fingerprint == toy.fingerprint
    assert load_encoder(card).width == 8


def test_package_with_a_second_weights_file_brings_both(tmp_path: Path) -> None:
    card = write_toy_encoder(tmp_path / "two", external="weights.onnx.data")
    export_model(card, tmp_path / "two.swm", key=KEY)
    assert load_encoder(import_model(tmp_path / "two.swm", trusted=TRUSTED))


def test_same_model_and_key_give_the_same_bytes(package: Path, toy: ModelCard, tmp_path: Path) -> None:
    export_model(toy, tmp_path / "again.swm", key=KEY)
    assert (tmp_path / "again.swm").read_bytes() == package.read_bytes()


def test_any_tar_reads_a_package(package: Path, toy: ModelCard) -> None:
    content = members(package)
    assert list(content) == ["manifest.json", "manifest.sig", "signer.pub", *toy.file_names]
    assert content["weights.onnx"] == toy.weights_path.read_bytes()
    if tar := shutil.which("tar"):
        listed = subprocess.run([tar, "-tf", str(package)], capture_output=True, text=True, check=True)
        assert listed.stdout.split() == list(content)


def test_size_above_8_gib_is_written_as_every_tar_reads_it() -> None:
    for n_bytes in (0, 511, 8**11 - 1, 8**11, 20_000_000_000):
        assert tarfile.TarInfo.frombuf(tar_header("weights.onnx", n_bytes), "ascii", "strict").size == n_bytes


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not on this machine")
def test_openssl_verifies_the_signature(package: Path, tmp_path: Path) -> None:
    for name, content in members(package).items():
        (tmp_path / name).write_bytes(content)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "signer.pub", "-rawin"]
    files = ["-in", "manifest.json", "-sigfile", "manifest.sig"]
    done = subprocess.run([*command, *files], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Verified Successfully" in done.stdout


def test_importing_twice_changes_nothing(package: Path, own_models: Path) -> None:
    card = import_model(package, trusted=TRUSTED)
    before = card.weights_path.stat().st_ino
    assert import_model(package, trusted=TRUSTED) == card
    assert card.weights_path.stat().st_ino == before


def test_another_model_of_the_same_id_is_refused_unless_it_may_replace(package: Path, tmp_path: Path) -> None:
    other = write_toy_encoder(tmp_path / "other", graph=ToyGraph(seed=3))
    install_model(other.folder)
    with pytest.raises(WrongUseError, match="--replace"):
        import_model(package, trusted=TRUSTED)
    assert find_encoder("toy").fingerprint == other.fingerprint
    import_model(package, trusted=TRUSTED, replace=True)
    assert find_encoder("toy").fingerprint != other.fingerprint


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_refused_and_leaves_nothing(tmp_path_factory, place: float, bit: int) -> None:
    root = tmp_path_factory.mktemp("flipped")
    toy = write_toy_encoder(root / "toy")
    export_model(toy, root / "toy.swm", key=KEY)
    content = bytearray((root / "toy.swm").read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    (root / "toy.swm").write_bytes(content)
    refuse(root, root / "toy.swm")


def test_every_flipped_bit_before_the_files_is_refused(package: Path, tmp_path: Path) -> None:
    content = package.read_bytes()
    head = -(-content.index(b"-----END PUBLIC KEY-----") // 512) * 512
    changed = tmp_path / "changed.swm"
    for place in range(head * 8):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        changed.write_bytes(flipped)
        with pytest.raises((BrokenPackageError, UntrustedPackageError)):
            read_manifest(changed, trusted=TRUSTED)


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True))
def test_package_cut_off_anywhere_is_refused_and_leaves_nothing(tmp_path_factory, place: float) -> None:
    root = tmp_path_factory.mktemp("cut")
    export_model(write_toy_encoder(root / "toy"), root / "toy.swm", key=KEY)
    content = (root / "toy.swm").read_bytes()
    (root / "toy.swm").write_bytes(content[: int(place * len(content))])
    refuse(root, root / "toy.swm")


def refuse(root: Path, package: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SLIDEWAY_MODELS", str(root / "models"))
        with pytest.raises((BrokenPackageError, UntrustedPackageError, UntrustedEncoderError)):
            import_model(package, trusted=TRUSTED)
    assert is_untouched(root / "models")


def test_something_after_the_end_is_refused(package: Path, own_models: Path) -> None:
    with package.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BrokenPackageError, match="after its end"):
        import_model(package, trusted=TRUSTED)
    assert is_untouched(own_models)


def test_key_that_is_not_trusted_is_shown_with_what_to_do(package: Path, own_models: Path) -> None:
    with pytest.raises(UntrustedPackageError, match="key --trust FILE") as caught:
        import_model(package, trusted=())
    assert in_groups(KEY.public.fingerprint) in str(caught.value)
    with pytest.raises(UntrustedPackageError):
        import_model(package, trusted=(STRANGER.public,))
    assert is_untouched(own_models)


def test_unsigned_package_is_refused(package: Path, own_models: Path) -> None:
    content = members(package)
    for missing in (("manifest.sig", "signer.pub"), ("manifest.sig",), ("signer.pub",)):
        pack(package, {name: c for name, c in content.items() if name not in missing})
        with pytest.raises(UntrustedPackageError, match="not signed"):
            import_model(package, trusted=TRUSTED)
    assert is_untouched(own_models)


def test_signature_of_a_stranger_under_a_trusted_name_is_refused(package: Path, own_models: Path) -> None:
    content = members(package)
    pack(package, {**content, "manifest.sig": STRANGER.sign(content["manifest.json"])})
    with pytest.raises(UntrustedPackageError, match="does not fit its manifest"):
        import_model(package, trusted=TRUSTED)
    assert is_untouched(own_models)


def test_exchanged_weights_with_an_honest_manifest_are_refused(package: Path, own_models: Path) -> None:
    content = members(package)
    weights = bytearray(content["weights.onnx"])
    weights[-1] ^= 1
    pack(package, {**content, "weights.onnx": bytes(weights)})
    with pytest.raises(BrokenPackageError, match="not the file that was signed"):
        import_model(package, trusted=TRUSTED)
    assert is_untouched(own_models)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m["files"][1].update(name="../../evil"), "names that no model has"),
        (lambda m: m["files"][1].update(name="/etc/passwd"), "names that no model has"),
        (lambda m: m["files"][1].update(name="a\\b"), "names that no model has"),
        (lambda m: m["files"][1].update(name="CARD.toml"), "names that no model has"),
        (lambda m: m["files"][1].update(bytes=-1), "names that no model has"),
        (lambda m: m.update(id="../up"), "names that no model has"),
        (lambda m: m["files"].reverse(), "names that no model has"),
        (lambda m: m.update(files=[]), "names that no model has"),
        (lambda m: m["files"][1].update(bytes=10**9), "was cut off"),
        (lambda m: m["files"][1].update(bytes="many"), "lacks an entry"),
        (lambda m: m["files"].append({"name": "more.py", "bytes": 0, "sha256": "0"}), "was cut off"),
        (lambda m: m.pop("files"), "lacks an entry"),
        (lambda m: m.pop("fingerprint"), "lacks an entry"),
        (lambda m: m.update(version="2.0"), "update Slideway"),
        (lambda m: m.update(version="new"), "not that of a Slideway model"),
        (lambda m: m.update(format="zip"), "not that of a Slideway model"),
    ],
)
def test_signed_manifest_that_lists_the_impossible_is_refused(package: Path, own_models: Path, change, named) -> None:
    with_manifest(package, change)
    with pytest.raises(BrokenPackageError, match=named):
        import_model(package, trusted=TRUSTED)
    assert is_untouched(own_models)


def test_newer_minor_version_is_read(package: Path) -> None:
    with_manifest(package, lambda m: m.update(version="1.4", newly_added="ignored"))
    assert import_model(package, trusted=TRUSTED).id == "toy"


@pytest.mark.parametrize("entry", ["id", "fingerprint"])
def test_manifest_of_another_model_is_refused(package: Path, own_models: Path, entry: str) -> None:
    with_manifest(package, lambda m: m.update({entry: "0" * 64}))
    with pytest.raises(UntrustedEncoderError, match=r"do not belong together|another model"):
        import_model(package, trusted=TRUSTED)
    assert is_untouched(own_models)


def test_further_signed_file_that_the_card_does_not_name_is_refused(package: Path, own_models: Path) -> None:
    content = {**members(package), "setup.py": b""}
    manifest = json.loads(content["manifest.json"])
    manifest["files"].append({"name": "setup.py", "bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()})
    pack(package, {**content, "manifest.json": json.dumps(manifest).encode()}, key=KEY)
    with pytest.raises(UntrustedEncoderError, match="another model than its card"):
        import_model(package, trusted=TRUSTED)
    assert is_untouched(own_models)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_folders_and_devices_are_refused(package: Path, own_models: Path, kind: bytes) -> None:
    content = bytearray(package.read_bytes())
    at = content.index(b"weights.onnx\0", content.index(b"golden.safetensors\0", 4000))
    info = tarfile.TarInfo("weights.onnx")
    info.type, info.linkname, info.size = kind, "/etc/passwd", 0
    content[at : at + 512] = info.tobuf(tarfile.USTAR_FORMAT)
    package.write_bytes(bytes(content))
    with pytest.raises(BrokenPackageError, match="links"):
        import_model(package, trusted=TRUSTED)
    assert is_untouched(own_models)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(600), b"x" * 5000, bytes(2048)])
def test_what_is_no_package_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.swm").write_bytes(content)
    with pytest.raises(BrokenPackageError, match=r"not a (whole|Slideway model) package"):
        import_model(tmp_path / "x.swm", trusted=TRUSTED)


def test_huge_manifest_is_not_read(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.swm", {"manifest.json": b" " * 1_000_001, "manifest.sig": b"", "signer.pub": b""})
    with pytest.raises(BrokenPackageError, match="which none is"):
        import_model(path, trusted=TRUSTED)
    path = pack(tmp_path / "y.swm", {"manifest.json": b"[" * 100_000, "manifest.sig": b"", "signer.pub": b""})
    with pytest.raises(BrokenPackageError, match="not that of a Slideway model"):
        import_model(path, trusted=TRUSTED)


def test_package_that_is_not_there_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(WrongUseError, match=r"gone\.swm"):
        import_model(tmp_path / "gone.swm", trusted=TRUSTED)


def test_head_of_a_package_can_be_read_alone(package: Path, toy: ModelCard, own_models: Path) -> None:
    manifest = read_manifest(package, trusted=TRUSTED)
    assert (manifest.id, manifest.fingerprint, manifest.signer) == ("toy", toy.fingerprint, KEY.public)
    assert is_untouched(own_models)


def test_check_that_fails_installs_nothing(package: Path, own_models: Path) -> None:
    def refuse_it(card: ModelCard) -> None:
        raise UntrustedEncoderError(f"{card.id}: golden tiles do not reproduce")

    with pytest.raises(UntrustedEncoderError, match="reproduce"):
        import_model(package, trusted=TRUSTED, check=refuse_it)
    assert is_untouched(own_models)


def test_damaged_model_is_not_packed_and_nothing_half_written_stays(toy: ModelCard, tmp_path: Path) -> None:
    toy.golden_path.write_bytes(b"damaged")
    with pytest.raises(UntrustedEncoderError):
        export_model(toy, tmp_path / "toy.swm", key=KEY)
    assert not list(tmp_path.glob("*.swm*"))
    assert not list(tmp_path.glob(".*"))


def test_place_that_cannot_be_written_is_said(toy: ModelCard, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        export_model(toy, tmp_path / "no-such-folder" / "toy.swm", key=KEY)


def test_signing_key_is_made_once_and_only_its_owner_may_read_it() -> None:
    assert load_signing_key() is None
    first = make_signing_key()
    assert make_signing_key().public == first.public
    assert [path.name for path in signing_key_path().parent.iterdir()] == ["signing-key.pem"]
    if os.name == "posix":
        assert signing_key_path().stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.name != "posix", reason="POSIX modes")
def test_signing_key_that_others_may_read_is_refused() -> None:
    make_signing_key()
    signing_key_path().chmod(0o640)
    with pytest.raises(WrongUseError, match="chmod 600"):
        load_signing_key()


def rsa_pem() -> bytes:
    key = generate_private_key(65537, 2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize(("content", "named"), [(b"damaged", "no signing key in it"), (None, "not an Ed25519 key")])
def test_damaged_or_other_signing_key_is_refused_and_not_overwritten(content: bytes | None, named: str) -> None:
    make_signing_key()
    content = content or rsa_pem()
    signing_key_path().write_bytes(content)
    with pytest.raises(WrongUseError, match=named):
        make_signing_key()
    assert signing_key_path().read_bytes() == content


def test_own_packages_and_those_of_trusted_keys_are_believed(toy: ModelCard, package: Path, tmp_path: Path) -> None:
    own = make_signing_key()
    (tmp_path / "county.pub").write_bytes(KEY.public.pem)
    trust_key(tmp_path / "county.pub")
    assert [(key.name, key.raw) for key in list_trusted()] == [
        ("this node", own.public.raw),
        ("county", KEY.public.raw),
    ]
    assert import_model(package, trusted=list_trusted()).id == "toy"
    export_model(toy, tmp_path / "own.swm", key=own)
    assert read_manifest(tmp_path / "own.swm", trusted=list_trusted()).signer.name == "this node"


def test_key_can_be_trusted_for_one_import_only(package: Path, tmp_path: Path) -> None:
    (tmp_path / "once.pub").write_bytes(KEY.public.pem)
    assert import_model(package, trusted=list_trusted(tmp_path / "once.pub")).id == "toy"
    assert list_trusted() == ()


def test_trusting_refuses_another_key_of_the_same_name_and_what_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "county.pub"
    path.write_bytes(KEY.public.pem)
    trust_key(path)
    assert trust_key(path).raw == KEY.public.raw  # again is no harm
    path.write_bytes(STRANGER.public.pem)
    with pytest.raises(WrongUseError, match="another key is trusted as 'county'"):
        trust_key(path)
    assert trust_key(path, name="other").name == "other"
    for wrong in ("../up", ".hidden", "a/b"):
        with pytest.raises(WrongUseError, match="no name for a key"):
            trust_key(path, name=wrong)
    path.write_bytes(b"no key")
    with pytest.raises(WrongUseError, match="no public key"):
        trust_key(path, name="third")
    with pytest.raises(WrongUseError, match="cannot be read"):
        trust_key(tmp_path / "gone.pub")
    assert sorted(p.name for p in trusted_folder().iterdir()) == ["county.pub", "other.pub"]


def test_file_among_the_trusted_that_is_no_key_is_named(tmp_path: Path) -> None:
    trusted_folder().mkdir(parents=True)
    (trusted_folder() / "odd.pub").write_text("no key", encoding="utf-8")
    with pytest.raises(WrongUseError, match=r"odd\.pub"):
        list_trusted()


def test_fingerprint_of_a_key_is_the_sha256_of_its_32_bytes() -> None:
    body = b"".join(KEY.public.pem.splitlines()[1:-1])
    raw = base64.b64decode(body)[-32:]
    assert KEY.public.fingerprint == hashlib.sha256(raw).hexdigest()
    assert TrustedKey("x", raw).pem == KEY.public.pem


def test_modules_that_read_slides_do_not_load_cryptography() -> None:
    code = "import sys, slideway.pipeline.read; print('cryptography' in sys.modules, 'tomli_w' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"


def test_every_refusal_has_an_exit_code_of_its_own_kind() -> None:
    codes = {e.code: e.exit_code for e in (BrokenPackageError, UntrustedPackageError)}
    assert codes == {"package-broken": 3, "package-untrusted": 2}
    assert issubclass(UntrustedPackageError, SlidewayError)
