"""Public cohorts: small folders of the same layout become cohort files that pass every check."""

import zipfile
from xml.sax.saxutils import escape

import h5py
import numpy as np
import pytest

from slideway.core.errors import CohortError
from slideway.learning.cohort import read_cohort
from slideway.learning.layouts import LAYOUTS, build_cohort, write_cohort
from slideway.learning.layouts.spreadsheet import read_sheet
from slideway.learning.questions import select_tasks
from slideway.learning.tile_table import TileReader, read_tile_table


def put(folder, *names, text=None):
    """Small files that differ."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name if text is None else text, encoding="utf-8")


def make(kind, folder, out=None):
    """Build, write and read back; and prove that the tasks the layout names can be trained."""
    found = build_cohort(kind, folder)
    path = out or folder / "made.csv"
    write_cohort(found, path)
    table = read_tile_table(path) if found.is_tiles else read_cohort(path)
    return found, table


def refusal(kind, folder):
    with pytest.raises(CohortError) as caught:
        build_cohort(kind, folder)
    return str(caught.value)


def columns(cohort, *names):
    return list(zip(*(cohort.values(n) if n in ("site", "stain", "fold") else cohort.raw_labels(n) for n in names),
                    strict=True))  # fmt: skip


def write_workbook(path, rows, sheet="WSI_Information", *, inline=False):
    """An .xlsx file as spreadsheets write it: text in sharedStrings.xml, numbers in the cells."""
    shared = [cell for row in rows for cell in row if isinstance(cell, str)]

    def cell(column, row, value):
        place = f'r="{chr(65 + column)}{row + 1}"'
        if isinstance(value, str) and inline:
            return f'<c {place} t="inlineStr"><is><t>{escape(value)}</t></is></c>'
        if isinstance(value, str):
            return f'<c {place} t="s"><v>{shared.index(value)}</v></c>'
        return "" if value is None else f"<c {place}><v>{value}</v></c>"

    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    relation = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    lines = "".join(
        f"<row>{''.join(cell(c, r, value) for c, value in enumerate(row))}</row>" for r, row in enumerate(rows)
    )
    sheets = f'<sheet name="Notes" r:id="r1"/><sheet name="{sheet}" r:id="r2"/>'
    targets = {"r1": "worksheets/1.xml", "r2": "/xl/worksheets/2.xml"}
    relations = "".join(f'<Relationship Id="{key}" Target="{target}"/>' for key, target in targets.items())
    strings = "".join(f"<si><r><t>{escape(text)}</t></r></si>" for text in shared)
    with zipfile.ZipFile(path, "w") as book:
        head = f'<workbook {main} xmlns:r="{relation}">'
        book.writestr("xl/workbook.xml", f"{head}<sheets>{sheets}</sheets></workbook>")
        book.writestr("xl/_rels/workbook.xml.rels", f"<Relationships>{relations}</Relationships>")
        book.writestr("xl/worksheets/2.xml", f"<worksheet {main}><sheetData>{lines}</sheetData></worksheet>")
        book.writestr("xl/sharedStrings.xml", f"<sst {main}>{strings}</sst>")


# CAMELYON


def test_camelyon16_of_the_challenge_reads_folders_and_reference(tmp_path):
    put(tmp_path, "training/normal/normal_001.tif", "training/normal/normal_002.tif", "training/tumor/tumor_001.tif",
        "training/tumor/tumor_002.tif", "testing/images/test_001.tif", "testing/images/test_002.tif",
        "testing/images/test_049.tif", "training/normal/normal_086.tif", "testing/evaluation/mask_001.tif")  # fmt: skip
    put(tmp_path, "testing/reference.csv", text="test_001,Tumor,IDC,Macro\ntest_002,Normal,None,None\n")
    found, cohort = make("camelyon16", tmp_path)
    assert columns(cohort, "fold", "malignant") == [
        ("train", "no"), ("train", "no"), ("test", "yes"), ("test", "no"), ("train", "yes"), ("train", "yes"),
    ]  # fmt: skip
    assert any("2 left out, withdrawn" in note for note in found.notes)
    assert select_tasks(cohort, found.tasks)[0].id == "malignant"


def test_camelyon16_of_the_open_bucket_takes_test_labels_from_annotations(tmp_path):
    put(tmp_path, "images/normal_001.tif", "images/tumor_001.tif", "images/test_001.tif", "images/test_002.tif",
        "annotations/tumor_001.xml", "annotations/test_002.xml")  # fmt: skip
    _, cohort = make("camelyon16", tmp_path)
    assert dict(zip(cohort.cases, cohort.raw_labels("malignant"), strict=True)) == {
        "normal_001": "no", "test_001": "no", "test_002": "yes", "tumor_001": "yes",
    }  # fmt: skip


def test_camelyon16_without_answers_or_slides_is_refused(tmp_path):
    assert "normal_001.tif" in refusal("camelyon16", tmp_path)
    put(tmp_path, "images/test_001.tif", "images/normal_001.tif")
    assert "1 test slides and no labels" in refusal("camelyon16", tmp_path)


STAGES = (
    "patient,stage\npatient_000.zip,pN0\npatient_000_node_0.tif,negative\npatient_000_node_1.tif,negative\n"
    "patient_021.zip,pN1\npatient_021_node_0.tif,macro\npatient_021_node_1.tif,itc\n"
    "patient_022.zip,pN0\npatient_022_node_0.tif,micro\n"
)


def test_camelyon17_reads_stages_and_counts_centres_by_twenty_patients(tmp_path):
    put(tmp_path, *(f"images/patient_{p}_node_{n}.tif" for p, n in (("000", 0), ("000", 1), ("021", 0), ("021", 1),
                                                                  ("022", 0), ("150", 0))))  # fmt: skip
    put(tmp_path, "stages.csv", text=STAGES)
    found, cohort = make("camelyon17", tmp_path)
    assert columns(cohort, "site", "malignant", "stage") == [
        ("centre-0", "no", "negative"), ("centre-0", "no", "negative"), ("centre-1", "yes", "macro"),
        ("centre-1", "yes", "itc"), ("centre-1", "yes", "micro"),
    ]  # fmt: skip
    assert cohort.cases == ("patient_000", "patient_000", "patient_021", "patient_021", "patient_022")
    assert any("patient_150_node_0" in note for note in found.notes)
    assert found.tasks[1] == "stage:negative<itc<micro<macro"


def test_camelyon17_believes_folders_and_the_table_about_centres(tmp_path):
    put(tmp_path, "training/center_3/patient_000_node_0.tif", "training/center_3/patient_021_node_0.tif")
    put(tmp_path, "training/stage_labels.csv", text=STAGES)
    assert make("camelyon17", tmp_path)[1].values("site") == ("centre-3", "centre-3")
    with_centre = STAGES.replace("stage\n", "stage,center\n").replace("negative\n", "negative,4\n")
    with_centre = (
        with_centre.replace("macro\n", "macro,2\n").replace("itc\n", "itc,2\n").replace("micro\n", "micro,2\n")
    )
    with_centre = with_centre.replace("pN0\n", "pN0,4\n").replace("pN1\n", "pN1,2\n")
    put(tmp_path, "training/stage_labels.csv", text=with_centre)
    assert make("camelyon17", tmp_path)[1].values("site") == ("centre-4", "centre-2")


def test_camelyon17_whose_labels_contradict_or_lack_is_refused(tmp_path):
    put(tmp_path, "images/patient_000_node_0.tif")
    assert "no stages.csv" in refusal("camelyon17", tmp_path)
    put(tmp_path, "stages.csv", text=STAGES)
    put(tmp_path, "annotations/patient_000_node_0.xml")
    assert "patient_000_node_0 is negative in the stages, and has an annotation" in refusal("camelyon17", tmp_path)


# PANDA

PANDA = (
    "image_id,data_provider,isup_grade,gleason_score\na1,karolinska,0,0+0\nb2,karolinska,5,4+5\n"
    "c3,radboud,0,negative\nd4,radboud,5,5+4\ne5,radboud,1,3+3\nf6,karolinska,1,3+3\n"
)


def test_panda_grades_cancers_and_takes_providers_for_sites(tmp_path):
    put(tmp_path, "train.csv", text=PANDA)
    put(
        tmp_path,
        *(f"train_images/{name}.tiff" for name in ("a1", "b2", "c3", "d4", "e5")),
        "train_label_masks/a1_mask.tiff",
    )
    found, cohort = make("panda", tmp_path)
    assert columns(cohort, "site", "malignant", "grade", "isup", "gleason") == [
        ("karolinska", "no", "", "0", "0+0"), ("karolinska", "yes", "5", "5", "4+5"),
        ("radboud", "no", "", "0", "0+0"), ("radboud", "yes", "5", "5", "5+4"), ("radboud", "yes", "1", "1", "3+3"),
    ]  # fmt: skip
    assert any("1 left out, not in train_images: f6" in note for note in found.notes)
    assert [question.labels for question in select_tasks(cohort, ["isup:ordinal"])] == [("0", "5")]


def test_panda_with_a_grade_that_is_none_or_without_images_is_refused(tmp_path):
    assert "no train.csv" in refusal("panda", tmp_path)
    put(tmp_path, "train.csv", text=PANDA)
    assert "images named as train.csv says" in refusal("panda", tmp_path)
    put(tmp_path, "train.csv", text=PANDA.replace("karolinska,5", "karolinska,7"))
    assert "line 3: isup_grade is '7'" in refusal("panda", tmp_path)


# TCGA

BARCODES = {
    "id-1": "TCGA-A1-A0SP-01Z-00-DX1.AAAA-1.svs",
    "id-2": "TCGA-A1-A0SQ-01A-01-TS1.BBBB-2.svs",
    "id-3": "TCGA-BH-A0B6-11A-02-BS1.CCCC-3.svs",
    "id-4": "TCGA-BH-A0B7-11A-01-TSA.DDDD-4.svs",
    "id-5": "TCGA-BH-A0B8-01Z-00-DX2.EEEE-5.svs",
}


def write_manifest(folder, files, size=None):
    lines = [f"{key}\t{name}\tmd5\t{size or len(f'{key}/{name}')}\treleased" for key, name in files.items()]
    put(folder, "gdc_manifest.txt", text="\n".join(["id\tfilename\tmd5\tsize\tstate", *lines, ""]))


def test_tcga_reads_case_site_sample_type_and_section_off_the_barcode(tmp_path):
    write_manifest(tmp_path, {**BARCODES, "id-6": "TCGA-A1-A0SR-01Z-00-DX1.F.svs", "id-7": "counts.tsv.gz"})
    put(tmp_path, *(f"{key}/{name}" for key, name in BARCODES.items()))
    put(tmp_path, "MANIFEST.txt", text="no manifest\n")
    found, cohort = make("tcga", tmp_path)
    assert cohort.cases == ("TCGA-A1-A0SP", "TCGA-A1-A0SQ", "TCGA-BH-A0B6", "TCGA-BH-A0B7", "TCGA-BH-A0B8")
    assert columns(cohort, "site", "stain", "neoplastic") == [
        ("A1", "H&E", "yes"), ("A1", "H&E frozen", "yes"), ("BH", "H&E frozen", "no"), ("BH", "H&E frozen", "no"),
        ("BH", "H&E", "yes"),
    ]  # fmt: skip
    assert any("not downloaded: TCGA-A1-A0SR" in note for note in found.notes)
    assert any("counts.tsv.gz" in note for note in found.notes)


def test_tcga_takes_projects_from_a_sample_sheet(tmp_path):
    write_manifest(tmp_path, BARCODES)
    put(tmp_path, *(f"{key}/{name}" for key, name in BARCODES.items()))
    sheet = "".join(f"{key}\t{name}\tTCGA-{'BRCA' if '-A1-' in name else 'LUAD'}\n" for key, name in BARCODES.items())
    put(tmp_path, "gdc_sample_sheet.2026-01-01.tsv", text="File ID\tFile Name\tProject ID\n" + sheet)
    found, cohort = make("tcga", tmp_path)
    assert set(cohort.raw_labels("project")) == {"TCGA-BRCA", "TCGA-LUAD"}
    assert found.tasks == ("project", "neoplastic")


def test_tcga_that_is_cut_off_or_has_no_manifest_is_refused(tmp_path):
    assert "no GDC manifest" in refusal("tcga", tmp_path)
    write_manifest(tmp_path, BARCODES)
    assert "has gdc-client run?" in refusal("tcga", tmp_path)
    put(tmp_path, *(f"{key}/{name}" for key, name in BARCODES.items()))
    write_manifest(tmp_path, BARCODES, size=10_000)
    assert "5 files are not as long as the manifest says" in refusal("tcga", tmp_path)


# BRACS

WORKBOOK = [
    ["WSI Filename", "Patient Id", "RoI ", "WSI label"],
    ["BRACS_1", 7, 3, "N"], ["BRACS_2", 8, None, "DCIS"], ["BRACS_3", 9, 0, "ADH"], ["BRACS_4", 7, 1, "IC"],
]  # fmt: skip


@pytest.mark.parametrize("inline", [False, True])
def test_bracs_slides_get_patients_from_the_workbook_and_a_torn_patient_goes_to_train(tmp_path, inline):
    put(tmp_path, "BRACS_WSI/train/Group_BT/Type_N/BRACS_1.svs", "BRACS_WSI/val/Group_MT/Type_DCIS/BRACS_2.svs",
        "BRACS_WSI/test/Group_AT/Type_ADH/BRACS_3.svs", "BRACS_WSI/test/Group_MT/Type_IC/BRACS_4.svs")  # fmt: skip
    write_workbook(tmp_path / "BRACS.xlsx", WORKBOOK, inline=inline)
    for folder in (tmp_path, tmp_path / "BRACS_WSI"):
        found, cohort = make("bracs", folder, tmp_path / "made.csv")
        assert sorted(zip(cohort.cases, *zip(*columns(cohort, "fold", "malignant", "group", "lesion"), strict=True),
                          strict=True)) == [
            ("patient-7", "train", "no", "benign", "N"), ("patient-7", "train", "yes", "malignant", "IC"),
            ("patient-8", "validation", "yes", "malignant", "DCIS"), ("patient-9", "test", "no", "atypical", "ADH"),
        ]  # fmt: skip
        assert any("1 cases stood on two sides" in note and "1 slides of theirs" in note for note in found.notes)


def test_bracs_regions_are_cases_of_their_slides_patients(tmp_path):
    root = "BRACS_RoI/latest_version"
    put(
        tmp_path,
        f"{root}/train/0_N/BRACS_1_N_1.png",
        f"{root}/train/0_N/BRACS_1_N_2.png",
        f"{root}/test/5_DCIS/BRACS_2_DCIS_4.png",
    )
    write_workbook(tmp_path / "BRACS.xlsx", WORKBOOK)
    _, cohort = make("bracs-roi", tmp_path)
    assert cohort.cases == ("patient-8", "patient-7", "patient-7")
    assert {row.mpp for row in cohort.rows} == {0.25}
    assert cohort.raw_labels("lesion") == ("DCIS", "N", "N")


def test_bracs_without_patients_is_refused(tmp_path):
    assert "is not laid out as expected" in refusal("bracs", tmp_path)
    put(tmp_path, "train/Group_BT/Type_N/BRACS_1.svs", "train/Group_BT/Type_N/BRACS_9.svs")
    assert "no BRACS.xlsx" in refusal("bracs", tmp_path)
    write_workbook(tmp_path / "BRACS.xlsx", WORKBOOK)
    assert "BRACS_9 is not in the sheet" in refusal("bracs", tmp_path)
    write_workbook(tmp_path / "BRACS.xlsx", [["Slide", "Patient Id"], ["BRACS_1", 7]])
    assert "no 'WSI Filename'" in refusal("bracs", tmp_path)
    write_workbook(tmp_path / "BRACS.xlsx", WORKBOOK, sheet="Other")
    assert "has no sheet 'WSI_Information', it has Notes, Other" in refusal("bracs", tmp_path)


def test_a_workbook_that_is_broken_or_hostile_is_refused(tmp_path):
    path = tmp_path / "b.xlsx"
    path.write_bytes(b"PK no zip")
    with pytest.raises(CohortError, match="not a readable"):
        read_sheet(path, "WSI_Information")
    with zipfile.ZipFile(path, "w") as book:
        book.writestr("xl/workbook.xml", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>')
    with pytest.raises(CohortError, match="declares entities"):
        read_sheet(path, "WSI_Information")


# Tile sets


def write_pcam(folder, split, labels, meta=None):
    stem = f"camelyonpatch_level_2_split_{split}"
    with h5py.File(folder / f"{stem}_x.h5", "w") as file:
        file["x"] = np.arange(len(labels) * 27, dtype=np.uint8).reshape(-1, 3, 3, 3)
    with h5py.File(folder / f"{stem}_y.h5", "w") as file:
        file["y"] = np.array(labels, np.uint8).reshape(-1, 1, 1, 1)
    if meta is not None:
        lines = [f"{i},1,2,True,{bool(label)},{slide}" for i, (label, slide) in enumerate(meta)]
        text = "\n".join([",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi", *lines, ""])
        (folder / f"{stem}_meta.csv").write_text(text, encoding="utf-8")


def test_pcam_stays_in_its_files_and_slides_stand_for_cases(tmp_path):
    write_pcam(tmp_path, "train", [0, 1, 1], [(0, "w1"), (1, "w1"), (1, "w2")])
    write_pcam(tmp_path, "valid", [1, 0], [(1, "w3"), (0, "w4")])
    write_pcam(tmp_path, "test", [0], [(0, "w5")])
    found, table = make("pcam", tmp_path)
    assert found.is_tiles
    assert not table.is_optimistic
    assert table.cases == ("w1", "w1", "w2", "w3", "w4", "w5")
    assert table.folds == ("train",) * 3 + ("validation",) * 2 + ("test",)
    assert table.raw_labels("malignant") == ("no", "yes", "yes", "yes", "no", "no")
    assert set(table.mpp.tolist()) == {0.972}
    with TileReader(tmp_path) as reader:
        assert reader.read(table.tiles[1]).ravel().tolist() == list(range(27, 54))


def test_pcam_without_slides_or_with_slides_of_other_tiles_is_optimistic(tmp_path):
    write_pcam(tmp_path, "train", [0, 1])
    found, table = make("pcam", tmp_path)
    assert table.is_optimistic
    assert any("train_meta.csv is missing" in note for note in found.notes)
    write_pcam(tmp_path, "test", [0, 1], [(1, "w1"), (0, "w2")])
    found, table = make("pcam", tmp_path)
    assert table.is_optimistic
    assert any("test_meta.csv does not agree" in note for note in found.notes)


def test_pcam_that_is_packed_or_does_not_belong_together_is_refused(tmp_path):
    stem = "camelyonpatch_level_2_split_train"
    put(tmp_path, f"{stem}_x.h5.gz")
    assert f"python -m gzip -d {stem}_x.h5.gz" in refusal("pcam", tmp_path)
    write_pcam(tmp_path, "train", [0, 1, 1])
    with h5py.File(tmp_path / f"{stem}_y.h5", "w") as file:
        file["y"] = np.zeros((2, 1, 1, 1), np.uint8)
    assert "3 tiles and 2 labels" in refusal("pcam", tmp_path)
    (tmp_path / f"{stem}_y.h5").unlink()
    assert f"{stem}_y.h5 is missing" in refusal("pcam", tmp_path)


def test_nct_crc_names_no_cases_and_judges_the_other_patients_set(tmp_path):
    put(tmp_path, "NCT-CRC-HE-100K/ADI/ADI-AAAA.tif", "NCT-CRC-HE-100K/TUM/TUM-AAAA.tif",
        "CRC-VAL-HE-7K/TUM/TUM-BBBB.tif", "NCT-CRC-HE-100K/readme.txt")  # fmt: skip
    found, table = make("nct-crc", tmp_path)
    assert table.is_optimistic
    assert list(zip(table.raw_labels("tissue"), table.folds, strict=True)) == [
        ("ADI", "train"), ("TUM", "train"), ("TUM", "test"),
    ]  # fmt: skip
    assert found.tasks == ("tissue",)
    _, alone = make("nct-crc", tmp_path / "NCT-CRC-HE-100K")
    assert alone.folds == ("", "")
    put(tmp_path, "NCT-CRC-HE-100K-NONORM/ADI/ADI-AAAA.tif")
    assert "hold the same tiles" in refusal("nct-crc", tmp_path)


# All


def test_every_layout_refuses_a_folder_of_something_else_with_what_it_expects(tmp_path):
    put(tmp_path, "holiday.jpg", "notes.txt")
    for kind in LAYOUTS:
        assert str(tmp_path) in refusal(kind, tmp_path)
    assert "no layout 'camelyon'" in refusal("camelyon", tmp_path)
    assert "is not a folder" in refusal("panda", tmp_path / "holiday.jpg")


def test_paths_are_relative_to_where_the_file_is_written(tmp_path):
    put(tmp_path, "data/images/normal_001.tif", "data/images/tumor_001.tif")
    (tmp_path / "elsewhere").mkdir()
    _, cohort = make("camelyon16", tmp_path / "data", tmp_path / "elsewhere" / "cohort.csv")
    assert cohort.rows[0].name == "../data/images/normal_001.tif"
