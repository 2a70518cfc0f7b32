"""Training in torch: the same numbers as inference in numpy, the lesion found, rare labels heard, children masked."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from slideway.core.opinion import Kind, TaskQuestion  # noqa: E402
from slideway.heads import fit  # noqa: E402
from slideway.heads.abmil import score_bag, score_tiles_together, to_probabilities  # noqa: E402
from slideway.heads.fit import (  # noqa: E402
    UNKNOWN,
    Training,
    _balance,
    _draw,
    _loss,
    _Network,
    choose_steps,
    fit_abmil,
    mask_children,
)
from slideway.heads.head import Head, save_head  # noqa: E402
from slideway.testing.heads import TOY_QUESTIONS, make_toy_head  # noqa: E402

LESION = TaskQuestion("malignant", "Malignant?", Kind.BINARY, ("no", "yes"))
GRADE = TaskQuestion("grade", "Grade", Kind.ORDINAL, ("G1", "G2", "G3"))
WIDTH, TILES, PLANTED = 16, 40, 3
SMALL = Training(more_steps=(), rank=16, hidden=16, attention=8, epochs=40, batch=8, rate=5e-3, dropout=0.1, seeds=(0,))


def make_bags(cases, *, strength=6.0, seed=0, tiles=TILES):
    """Every second bag has a lesion of three tiles along the first axis; returns bags, labels and planted tiles."""
    random = np.random.default_rng(seed)
    bags = random.normal(size=(cases, tiles, WIDTH)).astype(np.float16)
    labels, planted = np.arange(cases) % 2, [random.permutation(tiles)[:PLANTED] for _ in range(cases)]
    for bag, label, places in zip(bags, labels, planted, strict=True):
        bag[places, 0] += strength * label
    return list(bags), labels, planted


@pytest.fixture(scope="module")
def trained():
    bags, labels, _ = make_bags(24)
    return fit_abmil(bags, {"malignant": labels}, (LESION,), SMALL)


def test_numpy_gives_what_the_torch_network_gives():
    torch.manual_seed(3)
    network = _Network(12, TOY_QUESTIONS, Training(hidden=20, attention=10))
    network.layers.eval()
    network.drop.eval()
    with torch.no_grad():
        network.layers["task grade"].gaps.copy_(torch.tensor([0.7]))
    abmil = make_toy_head().network
    abmil = type(abmil)(abmil.projection, (network.freeze(),), TOY_QUESTIONS)
    random = np.random.default_rng(0)
    for weights in (np.ones(500, np.float32), random.uniform(1, 30, 500).astype(np.float32)):
        tiles = random.normal(size=(500, 12)).astype(np.float32) * 3
        with torch.no_grad():
            told = network.forward(torch.from_numpy(tiles)[None], torch.from_numpy(np.log(weights))[None])
        found = score_tiles_together(abmil, tiles, weights).logits
        for question in TOY_QUESTIONS:
            np.testing.assert_allclose(found[question.id], told[question.id][0].numpy(), atol=1e-4)


def test_padding_changes_nothing_for_a_shorter_bag_beside_it():
    torch.manual_seed(0)
    network = _Network(4, (LESION,), Training(hidden=6, attention=4))
    network.drop.eval()
    tiles = torch.randn(1, 5, 4)
    alone = network.forward(tiles, torch.zeros(1, 5))["malignant"]
    padded = torch.cat([tiles, torch.full((1, 3, 4), 9.0)], dim=1)
    log_weights = torch.tensor([[0.0] * 5 + [-np.inf] * 3])
    torch.testing.assert_close(network.forward(padded, log_weights)["malignant"], alone)


def test_planted_lesion_of_unseen_slides_is_found_hottest_and_pushes_towards_yes(trained):
    bags, labels, planted = make_bags(20, seed=9)
    logits = [score_bag(trained, bag).logits["malignant"][0] for bag in bags]
    assert min(np.array(logits)[labels == 1]) > max(np.array(logits)[labels == 0])
    for bag, label, places in zip(bags, labels, planted, strict=True):
        if not label:
            continue
        scores = score_bag(trained, bag)
        push = scores.push["malignant"][:, 0]
        assert sorted(np.argsort(scores.attention)[-PLANTED:]) == sorted(places)
        assert sorted(np.argsort(push)[-PLANTED:]) == sorted(places)
        assert (push[places] > 0).all()


def test_lesion_that_stands_for_no_also_gets_the_right_sign():
    bags, labels, _ = make_bags(24)
    turned = fit_abmil(bags, {"malignant": 1 - labels}, (LESION,), SMALL)
    more, truth, planted = make_bags(8, seed=9)
    for bag, places in ((b, p) for b, label, p in zip(more, truth, planted, strict=True) if label):
        push = score_bag(turned, bag).push["malignant"][:, 0]
        assert (push[places] < 0).all()
        assert sorted(np.argsort(push)[:PLANTED]) == sorted(places)


def test_same_seed_gives_the_same_head_to_the_bit_whatever_ran_before(trained, tmp_path):
    torch.manual_seed(77)
    torch.rand(5)
    bags, labels, _ = make_bags(24)
    again = fit_abmil(bags, {"malignant": labels}, (LESION,), SMALL)
    other = fit_abmil(bags, {"malignant": labels}, (LESION,), Training(**{**SMALL.__dict__, "seeds": (1,)}))
    files = []
    for name, network in (("a", trained), ("b", again), ("c", other)):
        toy = make_toy_head((LESION,), width=WIDTH)
        save_head(tmp_path / name, Head(network, toy.certainty, None, toy.known, toy.golden))
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_training_leaves_torch_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    bags, labels, _ = make_bags(4)
    fit_abmil(bags, {"malignant": labels}, (LESION,), Training(more_steps=(), epochs=1, seeds=(0,)))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_several_seeds_are_averaged_and_told():
    bags, labels, _ = make_bags(4)
    told = []
    training = Training(more_steps=(), rank=4, hidden=4, attention=4, epochs=1, seeds=(4, 5))
    both = fit_abmil(bags, {"malignant": labels}, (LESION,), training, tell=lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)]
    singly = [score_bag(type(both)(both.projection, (m,), both.questions), bags[0]) for m in both.members]
    together = score_bag(both, bags[0])
    np.testing.assert_allclose(
        together.logits["malignant"], np.mean([s.logits["malignant"] for s in singly], axis=0), rtol=1e-5
    )
    np.testing.assert_allclose(together.attention, np.mean([s.attention for s in singly], axis=0), rtol=1e-5)


def test_ordered_labels_are_learnt_in_their_order_and_their_steps_never_cross():
    random = np.random.default_rng(0)
    labels = np.arange(30) % 3
    bags = [random.normal(size=(20, WIDTH)).astype(np.float16) for _ in labels]
    for bag, label in zip(bags, labels, strict=True):
        bag[:, 0] += 2 * label
    abmil = fit_abmil(bags, {"grade": labels}, (GRADE,), SMALL)
    steps = abmil.members[0].tasks["grade"][1]
    assert (np.diff(steps) < 0).all()
    own = np.stack([to_probabilities(GRADE, score_bag(abmil, bag).logits["grade"]) for bag in bags])
    np.testing.assert_allclose(own.sum(axis=1), 1)
    assert (own.argmax(axis=1) == labels).mean() > 0.9


def test_rare_labels_weigh_as_much_as_common_ones():
    labels = np.array([0] * 18 + [1] * 2 + [UNKNOWN] * 5)
    weights = _balance(labels, 3)
    assert weights[0] * 18 == pytest.approx(float(weights[1] * 2))
    assert weights[2] == 0
    known = labels[labels != UNKNOWN]
    assert weights[known].mean() == pytest.approx(1)
    same = torch.zeros(20, 1)
    rare, common = (labels[:20] == one for one in (1, 0))
    of_rare = _loss(LESION, same[: rare.sum()], torch.from_numpy(known[known == 1]), weights) * rare.sum()
    of_common = _loss(LESION, same[: common.sum()], torch.from_numpy(known[known == 0]), weights) * common.sum()
    assert of_rare == pytest.approx(float(of_common), rel=1e-5)


def test_one_lesion_in_ten_is_still_called():
    bags, labels, _ = make_bags(40)
    rare = np.flatnonzero(labels == 1)[:4].tolist() + np.flatnonzero(labels == 0).tolist()
    abmil = fit_abmil([bags[i] for i in rare], {"malignant": labels[rare]}, (LESION,), SMALL)
    more, truth, _ = make_bags(20, seed=9)
    called = np.array([score_bag(abmil, bag).logits["malignant"][0] > 0 for bag in more])
    assert called[truth == 1].all()
    assert not called[truth == 0].any()


def test_child_is_learnt_from_bags_alone_whose_parent_is_yes():
    parent, child = TOY_QUESTIONS[:2]
    labels = {"neoplastic": np.array([0, 1, 1, UNKNOWN, 1]), "malignant": np.array([0, 0, 1, 1, UNKNOWN])}
    masked = mask_children(labels, (parent, child))
    assert masked["malignant"].tolist() == [UNKNOWN, 0, 1, UNKNOWN, UNKNOWN]
    assert masked["neoplastic"].tolist() == [0, 1, 1, UNKNOWN, 1]
    assert labels["malignant"].tolist() == [0, 0, 1, 1, UNKNOWN], "what was given is left as it was"


def test_labels_of_masked_bags_do_not_change_what_is_learnt():
    parent, child = TOY_QUESTIONS[:2]
    bags, lesion, _ = make_bags(12)
    neoplastic = np.array([0, 0, 1, 1] * 3)
    training = Training(**{**SMALL.__dict__, "epochs": 3})

    def learn(malignant):
        return fit_abmil(bags, {"neoplastic": neoplastic, "malignant": malignant}, (parent, child), training)

    masked = np.where(neoplastic == 0, UNKNOWN, lesion)
    first, second = learn(masked), learn(np.where(neoplastic == 0, 0, lesion))
    assert np.array_equal(first.members[0].tasks["malignant"][0], second.members[0].tasks["malignant"][0])
    assert np.array_equal(first.members[0].hidden[0], second.members[0].hidden[0])


def test_bag_without_a_label_for_a_task_adds_nothing_to_its_loss():
    torch.manual_seed(0)
    network = _Network(4, (LESION, GRADE), Training(hidden=6, attention=4))
    network.drop.eval()
    outputs = network.forward(torch.randn(3, 5, 4), torch.zeros(3, 5))
    weights = {"malignant": torch.ones(2), "grade": torch.ones(3)}
    none = {"malignant": np.full(3, UNKNOWN), "grade": np.full(3, UNKNOWN)}
    total = network._add_losses(outputs, none, weights)
    total.backward()
    assert float(total.detach()) == 0
    assert all(not p.grad.any() for p in network.layers.parameters() if p.grad is not None)


def test_vectors_that_are_not_finite_do_not_poison_the_training():
    bags, labels, _ = make_bags(12)
    for bag in bags[:4]:
        bag[0], bag[1, 2], bag[2, 0] = np.nan, np.inf, -np.inf
    abmil = fit_abmil(bags, {"malignant": labels}, (LESION,), Training(**{**SMALL.__dict__, "epochs": 3}))
    assert all(np.isfinite(part).all() for part in (*abmil.members[0].hidden, abmil.projection.axes))


def test_weights_of_a_sampled_bag_count_in_training():
    """What stands for much tissue is drawn no more often, but pools with its weight."""
    bags, labels, _ = make_bags(8)
    training = Training(more_steps=(), rank=8, hidden=8, attention=4, epochs=3, seeds=(0,))
    plain = fit_abmil(bags, {"malignant": labels}, (LESION,), training)
    ones = [np.ones(TILES, np.float32)] * 8
    heavy = [np.r_[np.full(5, 30), np.ones(TILES - 5)].astype(np.float32)] * 8
    same = fit_abmil(bags, {"malignant": labels}, (LESION,), training, weights=ones)
    other = fit_abmil(bags, {"malignant": labels}, (LESION,), training, weights=heavy)
    assert np.array_equal(plain.members[0].hidden[0], same.members[0].hidden[0])
    assert not np.array_equal(plain.members[0].hidden[0], other.members[0].hidden[0])


def test_drawn_tiles_bring_their_own_weights_and_small_bags_are_taken_whole():
    random = np.random.default_rng(0)
    large = np.arange(100, dtype=np.float32)[:, None]
    small = np.arange(6, dtype=np.float32)[:, None]
    tiles, log_weights = _draw([(large, large[:, 0]), (small, small[:, 0])], 30, random)
    assert tiles.shape == (2, 30, 1)
    assert len(set(tiles[0, :, 0].tolist())) == 30
    torch.testing.assert_close(tiles[0, :, 0], log_weights[0])
    assert sorted(tiles[1, :6, 0].tolist()) == list(range(6))
    assert torch.isneginf(log_weights[1, 6:]).all()


def test_bags_of_one_tile_and_of_many_train_together():
    bags, labels, _ = make_bags(6)
    bags[0], bags[3] = bags[0][:1], np.concatenate([bags[3]] * 5)
    abmil = fit_abmil(
        bags, {"malignant": labels}, (LESION,), Training(more_steps=(), epochs=2, seeds=(0,), kept=50, tiles=16)
    )
    assert np.isfinite(score_bag(abmil, bags[0]).logits["malignant"]).all()


def test_empty_bag_missing_labels_and_bags_without_a_number_are_refused():
    bags, labels, _ = make_bags(4)
    with pytest.raises(ValueError, match="without tiles"):
        fit_abmil([*bags[:3], bags[3][:0]], {"malignant": labels}, (LESION,), SMALL)
    with pytest.raises(ValueError, match="no bag has a label for malignant"):
        fit_abmil(bags, {"malignant": np.full(4, UNKNOWN)}, (LESION,), SMALL)
    with pytest.raises(ValueError, match="no tile's vector is finite"):
        fit_abmil([bag * np.nan for bag in bags], {"malignant": labels}, (LESION,), SMALL)


def make_needles(count: int, *, planted: int, seed: int = 0):
    """Bags of noise; every other one has planted tiles in one direction."""
    random = np.random.default_rng(seed)
    bags, labels = [], np.arange(count) % 2
    for label in labels:
        bag = random.normal(size=(60, 8)).astype(np.float32)
        bag[:planted, 0] += 6.0 * label
        bags.append(bag)
    return bags, labels.astype(np.int64)


def choose(bags, labels, training, groups=None):
    ready = [(bag, np.zeros(len(bag), np.float32)) for bag in bags]
    names = groups or [str(i) for i in range(len(bags))]
    return choose_steps(ready, {"malignant": labels}, (LESION,), training, names)


def test_a_needle_asks_for_more_steps_and_labels_of_chance_for_the_fewest():
    training = Training(rank=8, hidden=12, attention=6, epochs=10, more_steps=(400,), batch=8, seeds=(0,))
    bags, labels = make_needles(24, planted=3)
    assert choose(bags, labels, training) == 400
    assert choose(bags, np.random.default_rng(1).permutation(labels), training) == 30


def test_no_more_steps_are_tried_where_there_are_none_or_where_a_label_would_be_missing():
    bags, labels = make_needles(12, planted=3)
    fixed = Training(rank=8, hidden=4, attention=4, epochs=3, more_steps=(), batch=4, seeds=(0,))
    assert choose(bags, labels, fixed) == 9
    rare = np.array([1] + [0] * 11)
    assert choose(bags, rare, Training(**{**fixed.__dict__, "more_steps": (50,)})) == 9


def test_cases_are_kept_together_when_steps_are_chosen(monkeypatch):
    bags, labels = make_needles(12, planted=3)
    cases = [str(i // 2) for i in range(12)]
    labels = (np.arange(12) // 2 % 2).astype(np.int64)
    sizes = []
    monkeypatch.setattr(fit._Network, "judge", lambda self, asked, own: sizes.append(len(asked)) or 0.0)
    training = Training(rank=8, hidden=4, attention=4, epochs=1, more_steps=(5,), batch=4, seeds=(0,))
    choose(bags, labels, training, cases)
    assert all(size % 2 == 0 for size in sizes)
    assert len(sizes) == 6
