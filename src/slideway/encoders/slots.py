"""The foundation models that plug in: what each one is, what it expects of a tile and what its licence permits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from slideway.core.errors import WrongUseError
from slideway.encoders.architecture import VisionTransformer
from slideway.encoders.naming import Style

Numbers3 = tuple[float, float, float]
Pooling = Literal["cls", "cls+mean"]

_IMAGENET: tuple[Numbers3, Numbers3] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF: tuple[Numbers3, Numbers3] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_EVERYTHING = ("use", "research", "commercial", "change", "redistribute")


@dataclass(frozen=True)
class SlotLicence:
    """What the publisher of the weights permits.

    Attributes:
        id: SPDX identifier, or LicenseRef-… where the licence has none.
        permits: Any of use, research, commercial, change, redistribute.
        note: The same in a sentence.
    """

    id: str
    permits: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Slot:
    """A published model as Slideway builds it from its checkpoint; no code of the publisher is ever run.

    Attributes:
        id: Stable short name.
        title: Name for a person.
        hub_id: `owner/name` on the model hub; empty where no weights are published.
        network: The exact architecture.
        mean: Subtracted from pixels in [0, 1].
        std: What the difference is divided by.
        pooling: `cls`: the class token. `cls+mean`: beside it the mean of the patch tokens, registers left out.
        styles: Forms of tensor names that the publisher's files have.
        parameters: As published, rounded there.
        licence: What the publisher permits.
        trained_on: What it was trained on, in words.
        tile_px: Edge of the tiles that are read.
        mpp: Microns per pixel of a tile.
        ignored: Further tensors of the checkpoint that the encoder does not need.
        unverified: What nobody could check here, for the card.
    """

    id: str
    title: str
    hub_id: str
    network: VisionTransformer
    mean: Numbers3
    std: Numbers3
    pooling: Pooling
    styles: tuple[Style, ...]
    parameters: int
    licence: SlotLicence
    trained_on: str
    tile_px: int = 224
    mpp: float = 0.5
    ignored: tuple[str, ...] = ()
    unverified: str = ""

    @property
    def width(self) -> int:
        """Length of one embedding."""
        return self.network.width * (2 if self.pooling == "cls+mean" else 1)

    @property
    def pooling_words(self) -> str:
        """How a tile's tokens become one vector, for the card."""
        if self.pooling == "cls":
            return "class token after the last norm"
        return f"class token and mean of the patch tokens (from token {self.network.prefix}) after the last norm"


def list_slots() -> tuple[Slot, ...]:
    """All slots, the smallest network first."""
    return tuple(sorted(_SLOTS, key=lambda slot: slot.parameters))


def find_slot(slot_id: str) -> Slot:
    """Find a slot by its id.

    Raises:
        WrongUseError: No slot of that id; the message lists them.
    """
    for slot in _SLOTS:
        if slot.id == slot_id:
            return slot
    raise WrongUseError(f"no encoder slot {slot_id!r}; known are {', '.join(slot.id for slot in list_slots())}")


def find_slot_for_hub(repo_id: str) -> Slot | None:
    """The slot of a model on the hub, whatever the case of its name; None when there is none."""
    wanted = repo_id.casefold()
    return next((slot for slot in _SLOTS if slot.hub_id and slot.hub_id.casefold() == wanted), None)


def _vit(size: str, patch_px: int, **more: Any) -> VisionTransformer:
    width, depth, heads = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "g": (1536, 40, 24)}[size]
    usual = {"width": width, "depth": depth, "heads": heads, "hidden": 4 * width}
    return VisionTransformer(patch_px, **{**usual, **more})


_APACHE = SlotLicence(
    "Apache-2.0", _EVERYTHING, "Apache 2.0: commercial use, change and redistribution with the notice."
)
_MIT = SlotLicence("MIT", _EVERYTHING, "MIT: commercial use, change and redistribution with the notice.")
_NO_DERIVATIVES = SlotLicence(
    "CC-BY-NC-ND-4.0",
    ("research",),
    "CC BY-NC-ND 4.0 and the terms accepted at the hub: non-commercial academic research; neither the weights nor "
    "anything changed from them (a quantised form is) may be passed on.",
)
_VIRCHOW2 = SlotLicence(
    "CC-BY-NC-ND-4.0",
    ("research",),
    "CC BY-NC-ND 4.0 and the terms accepted at the hub: non-commercial academic research; no commercial model may be "
    "trained on its outputs; neither the weights nor anything changed from them may be passed on.",
)
_GIGAPATH = SlotLicence(
    "LicenseRef-Prov-GigaPath",
    ("research",),
    "Research and development only, not for clinical care or other deployment; read the terms accepted at the hub.",
)
_KAIKO = SlotLicence(
    "LicenseRef-Kaiko-NonCommercial", ("research",), "Non-commercial use only; read the licence of the publisher."
)
_OWKIN = SlotLicence(
    "LicenseRef-Owkin-NonCommercial", ("research",), "Non-commercial use only; read the licence of the publisher."
)
_DINOV3 = SlotLicence(
    "LicenseRef-DINOv3",
    ("research",),
    "The training code is under the DINOv3 licence; no weights were found published, so what their owner permits is "
    "not known: what you may do stands in the terms under which you received the file.",
)
_UNKNOWN = SlotLicence(
    "LicenseRef-Unknown",
    (),
    "Slideway does not know whose weights these are: what you may do stands in the terms of whoever gave you the file.",
)

_SEEN_FORM = "Form of names and tensors checked against the {library} implementation with random weights; "
_NEVER_SEEN = "the published weights were never seen here."
_TIMM = _SEEN_FORM.format(library="timm") + _NEVER_SEEN
_TRANSFORMERS = _SEEN_FORM.format(library="transformers") + _NEVER_SEEN


def _kaiko(size: str, patch_px: int, parameters: int) -> Slot:
    words = {"s": "small", "b": "base"}[size]
    return Slot(
        id=f"kaiko-vit{size}{patch_px}",
        title=f"Kaiko ViT-{size.upper()}/{patch_px}",
        hub_id=f"1aurent/vit_{words}_patch{patch_px}_224.kaiko_ai_towards_large_pathology_fms",
        network=_vit(size, patch_px),
        mean=_HALF[0],
        std=_HALF[1],
        pooling="cls",
        styles=("timm",),
        parameters=parameters,
        licence=_KAIKO,
        trained_on="Tiles of TCGA slides, self-supervised (DINO); arXiv 2404.15217.",
        unverified=_TIMM,
    )


_SLOTS: tuple[Slot, ...] = (
    Slot(
        id="vit-s16",
        title="Any ViT-S/16 of 224 px in timm's form",
        hub_id="",
        network=_vit("s", 16),
        mean=_HALF[0],
        std=_HALF[1],
        pooling="cls",
        styles=("timm",),
        parameters=21_700_000,
        licence=_UNKNOWN,
        trained_on="Not known.",
        ignored=("head.weight", "head.bias"),
        unverified=_SEEN_FORM.format(library="timm") + "mean and std of 0.5 are a guess about the file.",
    ),
    _kaiko("s", 16, 21_700_000),
    _kaiko("s", 8, 21_700_000),
    _kaiko("b", 16, 85_800_000),
    _kaiko("b", 8, 85_800_000),
    Slot(
        id="kaiko-vitl14",
        title="Kaiko ViT-L/14, 4 registers",
        hub_id="1aurent/vit_large_patch14_reg4_224.kaiko_ai_towards_large_pathology_fms",
        network=_vit("l", 14, registers=4, positions="patches", layer_scale=True),
        mean=_HALF[0],
        std=_HALF[1],
        pooling="cls",
        styles=("timm",),
        parameters=304_000_000,
        licence=_KAIKO,
        trained_on="Tiles of TCGA slides, self-supervised (DINOv2); arXiv 2404.15217.",
        unverified=_TIMM,
    ),
    Slot(
        id="phikon",
        title="Phikon ViT-B/16",
        hub_id="owkin/phikon",
        network=_vit("b", 16, norm_epsilon=1e-12),
        mean=_IMAGENET[0],
        std=_IMAGENET[1],
        pooling="cls",
        styles=("transformers-vit",),
        parameters=85_800_000,
        licence=_OWKIN,
        trained_on="40 million tiles of 6,093 TCGA slides of 16 cancers, self-supervised (iBOT).",
        unverified=_TRANSFORMERS,
    ),
    Slot(
        id="phikon-v2",
        title="Phikon-v2 ViT-L/16",
        hub_id="owkin/phikon-v2",
        network=_vit("l", 16, layer_scale=True),
        mean=_IMAGENET[0],
        std=_IMAGENET[1],
        pooling="cls",
        styles=("transformers-dinov2",),
        parameters=303_000_000,
        licence=_OWKIN,
        trained_on="460 million tiles of 58,000 public slides of 30 cancer sites, self-supervised (DINOv2).",
        unverified=_TRANSFORMERS,
    ),
    Slot(
        id="hibou-b",
        title="Hibou-B ViT-B/14, SwiGLU, 4 registers",
        hub_id="histai/hibou-b",
        network=_vit("b", 14, hidden=2048, gated=True, registers=4, layer_scale=True),
        mean=(0.7068, 0.5755, 0.722),
        std=(0.195, 0.2316, 0.1816),
        pooling="cls",
        styles=("transformers-dinov2", "dinov2"),
        parameters=85_700_000,
        licence=_APACHE,
        trained_on="512 million tiles of over a million slides of a private collection, self-supervised (DINOv2).",
        unverified=_TRANSFORMERS + " SwiGLU is what the authors' own code builds.",
    ),
    Slot(
        id="virchow",
        title="Virchow ViT-H/14, SwiGLU",
        hub_id="paige-ai/Virchow",
        network=VisionTransformer(14, width=1280, depth=32, heads=16, hidden=3416, gated=True, layer_scale=True),
        mean=_IMAGENET[0],
        std=_IMAGENET[1],
        pooling="cls+mean",
        styles=("timm",),
        parameters=631_000_000,
        licence=_APACHE,
        trained_on="1.5 million slides of a private collection, self-supervised (DINOv2).",
        unverified=_TIMM,
    ),
    Slot(
        id="virchow2",
        title="Virchow2 ViT-H/14, SwiGLU, 4 registers",
        hub_id="paige-ai/Virchow2",
        network=VisionTransformer(
            14,
            width=1280,
            depth=32,
            heads=16,
            hidden=3416,
            gated=True,
            registers=4,
            positions="prefix",
            layer_scale=True,
        ),
        mean=_IMAGENET[0],
        std=_IMAGENET[1],
        pooling="cls+mean",
        styles=("timm",),
        parameters=631_000_000,
        licence=_VIRCHOW2,
        trained_on="3.1 million slides of a private collection, several stains, self-supervised (DINOv2).",
        unverified=_TIMM,
    ),
    Slot(
        id="uni2-h",
        title="UNI2-h ViT-H/14, SwiGLU, 8 registers",
        hub_id="MahmoodLab/UNI2-h",
        network=_vit("g", 14, depth=24, hidden=4096, gated=True, registers=8, positions="patches", layer_scale=True),
        mean=_IMAGENET[0],
        std=_IMAGENET[1],
        pooling="cls",
        styles=("timm",),
        parameters=681_000_000,
        licence=_NO_DERIVATIVES,
        trained_on="200 million tiles of 350,000 slides, H&E and immunohistochemistry, self-supervised (DINOv2).",
        unverified=_TIMM,
    ),
    Slot(
        id="h-optimus-0",
        title="H-optimus-0 ViT-g/14, SwiGLU, 4 registers",
        hub_id="bioptimus/H-optimus-0",
        network=_vit("g", 14, hidden=4096, gated=True, registers=4, positions="patches", layer_scale=True),
        mean=(0.707223, 0.578729, 0.703617),
        std=(0.211883, 0.230117, 0.177517),
        pooling="cls",
        styles=("timm",),
        parameters=1_130_000_000,
        licence=_APACHE,
        trained_on="Tiles of over 500,000 H&E slides of a private collection, self-supervised (DINOv2).",
        unverified=_TIMM,
    ),
    Slot(
        id="prov-gigapath",
        title="Prov-GigaPath ViT-g/16, SwiGLU",
        hub_id="prov-gigapath/prov-gigapath",
        network=_vit("g", 16, hidden=4096, gated=True, layer_scale=True),
        mean=_IMAGENET[0],
        std=_IMAGENET[1],
        pooling="cls",
        styles=("timm",),
        parameters=1_130_000_000,
        licence=_GIGAPATH,
        trained_on="1.3 billion tiles of 171,189 slides of one hospital network, self-supervised (DINOv2).",
        tile_px=256,  # its transform brings a tile to 256 px and cuts the middle 224: at 256 px only the cut is left
        unverified=_TIMM,
    ),
    Slot(
        id="midnight-12k",
        title="Midnight-12k ViT-g/14, SwiGLU",
        hub_id="kaiko-ai/midnight",
        network=_vit("g", 14, hidden=4096, gated=True, layer_scale=True),
        mean=_HALF[0],
        std=_HALF[1],
        pooling="cls+mean",
        styles=("transformers-dinov2",),
        parameters=1_140_000_000,
        licence=_MIT,
        trained_on="Tiles of 12,000 TCGA slides, self-supervised (DINOv2); arXiv 2504.05186.",
        unverified=_TRANSFORMERS,
    ),
    Slot(
        id="ruipath",
        title="RuiPath ViT-L/16, 4 storage tokens, rotary positions",
        hub_id="",
        network=_vit("l", 16, registers=4, positions="rotary", layer_scale=True, norm_epsilon=1e-5),
        mean=(0.637, 0.464, 0.602),
        std=(0.210, 0.196, 0.184),
        pooling="cls",
        styles=("dinov3",),
        parameters=303_000_000,
        licence=_DINOV3,
        trained_on="About a million slides of one hospital, as its authors state; self-supervised (DINOv3).",
        unverified="Built from the published training code's form (DINOv3, checkpoint under `teacher`), checked "
        "against the transformers implementation with random weights; no weights were found, nor the pooling that its "
        "authors use.",
    ),
)
