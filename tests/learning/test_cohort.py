"""The cohort file: every way to get it wrong is refused with the line and the remedy."""

import shutil
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slideway.bundles import BagWriter
from slideway.core.errors import CohortError, FingerprintMismatchError, LeakageError, UnreadableBagError
from slideway.core.opinion import Kind
from slideway.core.tissue import TileGrid
from slideway.learning.cohort import SlideKind, read_cohort
from slideway.learning.questions import find_confounding, index_labels, note_tasks, select_tasks
from slideway.learning.tile_table import TileReader, read_tile_table


def write_bag(path, *, sha="", fingerprint="f" * 64, tiles=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = TileGrid(np.stack([np.arange(tiles), np.zeros(tiles)], 1).astype(np.int32), 224, 0.5, 0.5)
    with BagWriter(path, grid, 4) as writer:
        writer.write(np.arange(tiles), np.ones((tiles, 4), np.float32), np.ones(tiles, np.float32))
        writer.finish(
            encoder_id=fingerprint[:3], fingerprint=fingerprint, slide_sha256=sha or path.parent.name.zfill(64)
        )
    return path


def write(folder, text, encoding="utf-8", name="cohort.csv"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def slides(tmp_path):
    """Six files that differ, s1.svs to s6.svs."""
    for i in range(1, 7):
        (tmp_path / f"s{i}.svs").write_bytes(bytes([i]) * 40)
    return tmp_path


def rows(*cells, header="slide,case,malignant"):
    return "\n".join([header, *cells, ""])


def refusal(path, error=CohortError):
    with pytest.raises(error) as caught:
        read_cohort(path)
    return str(caught.value)


GOOD = rows("s1.svs,a,yes", "s2.svs,b,no", "s3.svs,c,yes", "s4.svs,d,no")


def test_a_good_file_gives_its_slides_cases_and_labels(slides):
    cohort = read_cohort(write(slides, GOOD))
    assert cohort.cases == ("a", "b", "c", "d")
    assert cohort.raw_labels("malignant") == ("yes", "no", "yes", "no")
    assert cohort.tasks == ("malignant",)
    assert cohort.columns == ("slide", "case")
    assert cohort.notes == ()
    assert cohort.rows[1].kind is SlideKind.SLIDE
    assert cohort.rows[1].line == 3
    assert len(cohort.sha256) == 64


def test_each_kind_of_slide_is_recognised(tmp_path):
    write_bag(tmp_path / "read" / "bag.safetensors")
    write_bag(tmp_path / "x" / "other.safetensors")
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / "0-224.jpg").write_bytes(b"x")
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        archive.add(tmp_path / "tiles" / "0-224.jpg", "t/0-224.jpg")
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "1.dcm").write_bytes(b"x")
    lines = ("read,a,", "x/other.safetensors,b,", "tiles,c,0.5", "t.tar,d,0.25", "dicom,e,")
    cohort = read_cohort(write(tmp_path, rows(*lines, header="slide,case,mpp")))
    kinds = [row.kind for row in cohort.rows]
    assert kinds == [SlideKind.READ, SlideKind.BAG, SlideKind.TILES, SlideKind.TILES, SlideKind.SLIDE]
    assert cohort.rows[0].bag_path == tmp_path / "read" / "bag.safetensors"
    assert cohort.rows[2].bag_path is None
    assert cohort.rows[3].mpp == 0.25


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_spreadsheets_delimiters_and_encodings_are_read(slides, delimiter, encoding):
    text = GOOD.replace("case", "Case").replace(",", delimiter).replace("\n", "\r\n")
    assert read_cohort(write(slides, text, encoding)).cases == ("a", "b", "c", "d")


def test_gb18030_is_read_with_a_note(slides):
    text = GOOD.replace(",a,", ",病例甲,").replace("slide,case,malignant", "slide,case,malignant,site")
    text = text.replace("yes\n", "yes,协和\n").replace("no\n", "no,协和\n")
    cohort = read_cohort(write(slides, text, "gb18030"))
    assert cohort.cases[0] == "病例甲"
    assert "GB18030" in cohort.notes[0]


def test_a_path_of_windows_is_found(slides):
    (slides / "sub").mkdir()
    shutil.move(slides / "s1.svs", slides / "sub" / "s1.svs")
    assert read_cohort(write(slides, GOOD.replace("s1.svs", "sub\\s1.svs"))).rows[0].path.is_file()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("slide,case,malignant\n", "nothing below"),
        (GOOD.replace("case", "cases"), "rename 'cases' to 'case'"),
        (GOOD.replace("slide,case", "slide,patient"), "no column 'case'"),
        (GOOD.replace("slide,case,malignant", "slide,case,case"), "there twice"),
        (GOOD.replace("malignant", "Is cancer?"), "column 'is cancer?' cannot be a task"),
        (GOOD.replace("s2.svs,b,no", "s2.svs,,no"), "line 3: no case"),
        (GOOD.replace("s2.svs,b,no", ",b,no"), "line 3: no slide"),
        (GOOD.replace("s2.svs,b,no", "s2.svs,b,no,more"), "line 3: 4 cells"),
        (GOOD.replace("s2.svs,b,no", "s2.svs,b"), "line 3: 2 cells"),
        (GOOD.replace("s2.svs", "s1.svs"), "lines 2 and 3: the same slide twice (s1.svs) and calls its malignant"),
        (GOOD.replace("s3.svs", "./s1.svs"), "lines 2 and 4: the same slide twice (./s1.svs); keep"),
        (GOOD.replace("s2.svs,b,no", "s2.svs,b,Yes"), "malignant is 'yes' and 'Yes'; write it one way"),
    ],
)
def test_a_wrong_line_is_named(slides, text, said):
    assert said in refusal(write(slides, text))


def test_missing_slides_are_listed_up_to_five_and_counted(slides):
    lines = [f"gone{i}.svs,c{i},yes" for i in range(7)]
    message = refusal(write(slides, rows("s1.svs,a,yes", *lines)))
    assert "7 of 8 slides are not there: line 3: gone0.svs" in message
    assert "gone4.svs … (7 in all)" in message
    assert "gone5" not in message


def test_a_spreadsheet_a_missing_file_and_a_picture_are_refused(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"PK\x03\x04rest")
    assert "save it as CSV" in refusal(tmp_path / "a.xlsx")
    assert "no such file" in refusal(tmp_path / "none.csv")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\xff\xff")
    assert "is not text" in refusal(tmp_path / "a.png")


def test_site_for_some_rows_only_is_refused_and_scanner_for_some_is_a_note(slides):
    text = rows("s1.svs,a,yes,X", "s2.svs,b,no,", "s3.svs,c,yes,X", header="slide,case,malignant,site")
    assert "line 3: no site, though other lines have one" in refusal(write(slides, text))
    cohort = read_cohort(write(slides, text.replace("site", "scanner")))
    assert cohort.notes == ("scanner: unknown for 1 of 3 slides; tables by scanner show them as 'unknown'",)


def test_a_split_by_slide_is_refused_as_leakage(slides):
    text = rows("s1.svs,a,yes,train", "s2.svs,a,no,test", "s3.svs,c,yes,test", header="slide,case,malignant,fold")
    message = refusal(write(slides, text), LeakageError)
    assert "a (train: line 2, test: line 3)" in message
    assert "by case, never by slide" in message


def test_words_of_public_cohorts_for_folds_are_understood_and_others_refused(slides):
    text = rows("s1.svs,a,yes,Training", "s2.svs,b,no,val", "s3.svs,c,yes,testing", header="slide,case,malignant,fold")
    assert [row.fold for row in read_cohort(write(slides, text)).rows] == ["train", "validation", "test"]
    assert "line 3: fold is '2'" in refusal(write(slides, text.replace("val", "2")))


def test_a_case_of_two_sites_is_a_note(slides):
    text = rows("s1.svs,a,yes,X", "s2.svs,a,no,Y", "s3.svs,c,yes,X", header="slide,case,malignant,site")
    assert "1 cases come from two sites (a)" in read_cohort(write(slides, text)).notes[0]


def test_the_same_content_under_two_names_is_refused_and_in_two_cases_a_leak(slides):
    shutil.copy(slides / "s1.svs", slides / "s2.svs")
    assert "s1.svs and s2.svs are the same slide, in cases a and b" in refusal(write(slides, GOOD), LeakageError)
    with pytest.raises(CohortError) as caught:
        read_cohort(write(slides, GOOD.replace(",b,", ",a,")))
    assert not isinstance(caught.value, LeakageError)


def test_bags_of_the_same_slide_and_of_two_encoders_are_refused(tmp_path):
    for name in "pqr":
        write_bag(tmp_path / name / "bag.safetensors")
    path = write(tmp_path, rows("p,a,yes", "q,b,no", "r,c,yes"))
    assert len(read_cohort(path).rows) == 3
    write_bag(tmp_path / "q" / "bag.safetensors", sha="p".zfill(64))
    assert "p and q are the same slide" in refusal(path, LeakageError)
    write_bag(tmp_path / "q" / "bag.safetensors", fingerprint="e" * 64)
    message = refusal(path, FingerprintMismatchError)
    assert "2 by fff" in message
    assert "1 by eee" in message
    assert "line 3" in message
    (tmp_path / "q" / "bag.safetensors").write_bytes(b"cut")
    assert "line 3, q" in refusal(path, UnreadableBagError)


def test_a_bag_and_its_folder_are_the_same_slide(tmp_path):
    write_bag(tmp_path / "p" / "bag.safetensors")
    assert "same slide twice" in refusal(write(tmp_path, rows("p,a,yes", "p/bag.safetensors,a,yes")))


def test_a_slide_without_tissue_is_a_note(tmp_path):
    write_bag(tmp_path / "p" / "bag.safetensors")
    write_bag(tmp_path / "q" / "bag.safetensors", tiles=0)
    assert read_cohort(write(tmp_path, rows("p,a,yes", "q,b,no"))).notes[0].startswith("line 3: no tissue")


def test_tile_images_need_a_pixel_size_that_can_be_one(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "0-0.png").write_bytes(b"x")
    assert "give it in a column mpp" in refusal(write(tmp_path, rows("t,a,yes")))
    for wrong in ("20x", "0.001", "-1", "nan"):
        text = rows(f"t,a,yes,{wrong}", header="slide,case,malignant,mpp")
        assert f"mpp is '{wrong}'" in refusal(write(tmp_path, text))
    (tmp_path / "empty").mkdir()
    assert "neither an output folder" in refusal(write(tmp_path, rows("empty,a,yes")))
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    assert "cannot be read as a tar" in refusal(write(tmp_path, rows("bad.tar,a,yes")))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(st.text(max_size=12), min_size=1, max_size=20).map(
            lambda cells: ",".join(cells).encode("utf-8", "replace")
        ),
        st.text(max_size=80).map(lambda text: f"slide,case,x\n{text}".encode("utf-8", "replace")),
    )
)
def test_whatever_the_file_holds_the_answer_is_a_refusal_in_words(tmp_path, content):
    path = tmp_path / "cohort.csv"
    path.write_bytes(content)
    for read in (read_cohort, read_tile_table):
        with pytest.raises(CohortError) as caught:
            read(path)
        assert "cohort.csv" in str(caught.value)


def test_a_name_that_no_file_can_have_is_missing(slides):
    assert "1 of 4 slides are not there" in refusal(write(slides, GOOD.replace("s2.svs", "x" * 5000)))
    assert "1 of 4 slides are not there" in refusal(write(slides, GOOD.replace("s2.svs", "~nobody/s2.svs")))


# Questions


def ask(folder, header, lines, *specs, **more):
    cohort = read_cohort(write(folder, rows(*lines, header=header)))
    return cohort, select_tasks(cohort, specs, **more)


def test_kinds_are_found_and_words_for_yes_are_mapped_with_a_note(slides):
    lines = ("s1.svs,a,tumor,lung,2", "s2.svs,b,normal,lung,2", "s3.svs,c,tumor,skin,3", "s4.svs,d,normal,skin,1",
             "s5.svs,e,,,2", "s6.svs,f,unknown,,3")  # fmt: skip
    cohort, asked = ask(slides, "slide,case,malignant,organ,grade", lines, "malignant", "organ", "grade:ordinal")
    by_id = {question.id: question for question in asked}
    assert by_id["malignant"].kind is Kind.BINARY
    assert by_id["organ"].labels == ("lung", "skin")
    assert by_id["grade"].parent == "malignant"
    assert index_labels(cohort, by_id["malignant"]).tolist() == [1, 0, 1, 0, -1, -1]
    assert by_id["grade"].labels == ("2", "3")
    assert index_labels(cohort, by_id["grade"]).tolist() == [0, -1, 1, -1, 0, 1]
    assert any("tumor → yes" in note for note in note_tasks(cohort, asked))
    assert any("'unknown' or 'NA'" in note for note in cohort.notes)


def test_parents_come_first_and_a_benign_slide_has_no_grade(slides):
    (slides / "s7.svs").write_bytes(b"7")
    lines = ("s1.svs,a,yes,yes,G1", "s2.svs,b,yes,yes,G2", "s3.svs,c,yes,yes,G1", "s4.svs,d,yes,yes,G2",
             "s5.svs,e,yes,no,G1", "s6.svs,f,no,,", "s7.svs,g,no,,")  # fmt: skip
    header = "slide,case,neoplastic,malignant,grade"
    cohort, asked = ask(slides, header, lines, "grade:ordinal", "malignant", "neoplastic")
    assert [(question.id, question.parent) for question in asked] == [
        ("neoplastic", ""), ("malignant", "neoplastic"), ("grade", "malignant"),
    ]  # fmt: skip
    assert index_labels(cohort, asked[2]).tolist() == [0, 1, 0, 1, -1, -1, -1]
    assert index_labels(cohort, asked[1]).tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert "grade: not learnt from 1 slides whose malignant is no" in note_tasks(cohort, asked)


def test_malignant_but_not_neoplastic_contradicts_itself(slides):
    lines = ("s1.svs,a,no,yes", "s2.svs,b,yes,no", "s3.svs,c,yes,yes", "s4.svs,d,no,no")
    with pytest.raises(CohortError, match="line 2: malignant is yes though neoplastic is no"):
        ask(slides, "slide,case,neoplastic,malignant", lines, "malignant", "neoplastic")


@pytest.mark.parametrize(
    ("labels", "spec", "said"),
    [
        ("yes yes yes yes", "x", "one class only \\(yes, 4 cases\\)"),
        ("yes no no no", "x", "two classes of at least 2 cases each \\(no: 3, yes: 1\\)"),
        ("yes no maybe no", "x", "line 4: x is neither yes nor no"),
        ("a a b b", "x:binary", "lines 2, 3, 4 and 5: x is neither"),
        ("low mid low mid", "x:ordinal", "write it, e.g. x:low<mid"),
        ("low mid low top", "x:low<mid", "line 5: x has a label that low<mid does not name"),
        ("a a b b", "x:nominal", "x:nominal is no kind of task"),
        ("a a b b", "y", "no column 'y'; its tasks are x"),
        (", , , ,", "x", "no label at all"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(slides, labels, spec, said):
    lines = [f"s{i + 1}.svs,c{i},{label.strip(',')}" for i, label in enumerate(labels.split())]
    with pytest.raises(CohortError, match=said):
        ask(slides, "slide,case,x", lines, spec)


def test_a_class_of_one_case_is_left_out_with_a_note(slides):
    lines = [f"s{i + 1}.svs,c{i},{label}" for i, label in enumerate("aabbc")]
    cohort, asked = ask(slides, "slide,case,x", lines, "x")
    assert asked[0].labels == ("a", "b")
    assert index_labels(cohort, asked[0]).tolist() == [0, 0, 1, 1, -1]
    assert note_tasks(cohort, asked) == ("x: left out, for a class needs 2 cases: c",)


def test_two_slides_of_one_case_are_one_case(slides):
    lines = ("s1.svs,a,yes", "s2.svs,a,yes", "s3.svs,c,no", "s4.svs,d,no")
    with pytest.raises(CohortError, match="yes: 1"):
        ask(slides, "slide,case,x", lines, "x")


@pytest.mark.parametrize(
    ("labels", "order"),
    [("10 9 9 10", ("9", "10")), ("G2 G1 G2 G1", ("G1", "G2")), ("III II II III", ("II", "III"))],
)
def test_an_order_is_read_off_numbers(slides, labels, order):
    lines = [f"s{i + 1}.svs,c{i},{label}" for i, label in enumerate(labels.split())]
    assert ask(slides, "slide,case,x", lines, "x:ordinal")[1][0].labels == order


@pytest.mark.parametrize("column", ["site", "scanner", "stain", "laboratory"])
def test_a_label_that_is_read_off_something_else_is_refused_unless_accepted(slides, column):
    lines = ("s1.svs,a,yes,P", "s2.svs,b,yes,P", "s3.svs,c,no,Q", "s4.svs,d,no,Q")
    header = f"slide,case,malignant,{column}"
    with pytest.raises(LeakageError, match=f"malignant can be read off {column} for every slide \\(P → yes, Q → no\\)"):
        ask(slides, header, lines, "malignant")
    cohort, asked = ask(slides, header, lines, "malignant", allow_confounded=True)
    assert f"malignant can be read off {column} for 100 %" in note_tasks(cohort, asked)[0]
    broken = (*lines, "s5.svs,e,no,P", "s6.svs,f,yes,Q")
    cohort, asked = ask(slides, header, broken, "malignant")
    assert note_tasks(cohort, asked) == ()


def test_a_site_for_each_case_is_no_confounding(slides):
    lines = ("s1.svs,a,yes,P", "s2.svs,b,yes,Q", "s3.svs,c,no,R", "s4.svs,d,no,S")
    cohort, _ = ask(slides, "slide,case,malignant,site", lines, "malignant")
    assert find_confounding(cohort, "malignant") == ()


# Tile tables


@pytest.fixture
def tiles(tmp_path):
    import cv2
    import h5py

    pixels = np.zeros((4, 5, 5, 3), np.uint8)
    pixels[..., 0] = np.arange(4)[:, None, None] * 60  # red
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["x"] = pixels
    for i in range(2):
        cv2.imwrite(str(tmp_path / f"{i}.png"), pixels[i, ..., ::-1])
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        archive.add(tmp_path / "1.png", "in/1.png")
    (tmp_path / "1.png").unlink()
    return tmp_path


TILES = "tile,case,mpp,malignant\n0.png,a,0.5,yes\nt.tar::in/1.png,b,0.5,no\nt.h5::x::2,c,1,yes\nt.h5::x::3,d,1,no\n"


def test_tiles_are_read_from_files_tars_and_hdf5(tiles):
    table = read_tile_table(write(tiles, TILES))
    assert not table.is_optimistic
    assert table.mpp.tolist() == [0.5, 0.5, 1, 1]
    with TileReader(tiles) as reader:
        assert [int(reader.read(tile)[2, 2, 0]) for tile in table.tiles] == [0, 60, 120, 180]
        with pytest.raises(CohortError, match=r"gone\.png cannot be read"):
            reader.read("gone.png")
    (question,) = select_tasks(table, ["malignant"])
    assert index_labels(table, question).tolist() == [1, 0, 1, 0]


def test_a_tile_table_without_cases_is_optimistic_and_says_so(tiles):
    table = read_tile_table(write(tiles, TILES.replace("tile,case,mpp", "tile,note-of-old,mpp")))
    assert table.is_optimistic
    assert len(set(table.cases)) == 4
    assert "optimistic" in table.notes[0]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("0.png", "9.png", "1 of 4 tiles are not there: line 2: 9.png"),
        ("in/1.png", "in/9.png", "line 3: t.tar::in/9.png"),
        ("x::3", "x::4", "line 5: t.h5::x::4"),
        ("x::3", "y::3", "line 5: t.h5::y::3"),
        ("x::3", "x::2", "lines 4 and 5: the same tile twice"),
        (",a,", ",,", "line 2: no case"),
        ("0.5", "half", "no mpp from 0.05 to 20"),
        (",malignant", ",Malignant?", "name one column a task"),
    ],
)
def test_wrong_lines_of_a_tile_table_are_named(tiles, old, new, said):
    with pytest.raises(CohortError) as caught:
        read_tile_table(write(tiles, TILES.replace(old, new)))
    assert said in str(caught.value)


def test_a_case_on_both_sides_of_a_tile_set_is_a_leak(tiles):
    text = "tile,case,mpp,malignant,fold\n0.png,a,0.5,yes,train\nt.h5::x::2,a,1,no,test\n"
    with pytest.raises(LeakageError, match="1 cases stand in two folds \\(a\\)"):
        read_tile_table(write(tiles, text))
