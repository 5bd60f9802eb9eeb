import math
import re
from dataclasses import replace

import numpy as np
import pytest

from deployml.runtime.attempt import in_one_line
from deployml.runtime.compare import Granted, compare, grant, relative_error
from deployml.runtime.errors import DeploymlBug
from deployml.runtime.feeds import Case, InputSpec, grid
from deployml.runtime.parity import refusal, validate
from deployml.runtime.report import ParityReport, from_json, to_json
from deployml.runtime.sensitivity import shortened, shuffled

SPECS = (
    InputSpec(name="x", dtype="float32", shape=("batch", "sequence", 4)),
    InputSpec(name="mask", dtype="int64", shape=("batch", "sequence"), role="attention-mask"),
)
CASES = grid(SPECS)
TIGHT = Granted(1e-4, "test")


def mean_of_real(feeds):
    """A stand-in for attention: every position sees the mean of the real ones."""
    keep = feeds["mask"][..., None].astype(np.float32)
    mean = (feeds["x"] * keep).sum(1, keepdims=True) / keep.sum(1, keepdims=True)
    return [feeds["x"] + mean]


def check(run, reference=mean_of_real, **options) -> ParityReport:
    return validate(run, reference, options.pop("cases", CASES), output_names=("y",), **options)


def judge(ours, theirs, **options):
    options = {"case": "c", "output_name": "y", "granted": TIGHT} | options
    return compare(np.asarray(ours), np.asarray(theirs), **options)


# compare


def test_needed_is_relative_to_the_largest_reference_value():
    theirs = np.array([[0.0, -10.0], [1.0, 2.0]], np.float32)
    ours = theirs.copy()
    ours[1, 0] += 5e-4
    found = judge(ours, theirs)
    assert found.needed == pytest.approx(5e-5, rel=1e-3)
    assert found.max_abs == pytest.approx(5e-4, rel=1e-3)
    assert found.worst == (1, 0)
    assert found.verdict == "pass"
    assert judge(ours, theirs, granted=Granted(4e-5, "test")).verdict == "fail"


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (np.zeros((2, 3), "f4"), np.zeros((3, 2), "f4"), r"shape is \[2, 3\]"),
        (np.zeros(3, "f8"), np.zeros(3, "f4"), "dtype is float64"),
        (np.zeros(3, "i8"), np.zeros(3, "f4"), "dtype is int64"),
        (np.zeros((0, 3), "f4"), np.zeros((0, 3), "f4"), "no elements"),
        (np.array(["a"]), np.array(["a"]), "cannot be compared"),
    ],
)
def test_what_cannot_be_compared_fails(ours, theirs, said):
    found = judge(ours, theirs)
    assert found.verdict == "fail"
    assert re.search(said, found.note)


def test_a_wider_reference_only_where_it_is_allowed():
    theirs = np.array([1.0, 2.0])
    assert judge(theirs.astype("f4"), theirs).verdict == "fail"
    assert judge(theirs.astype("f4"), theirs, same_dtype=False).verdict == "pass"
    assert judge(np.array([1, 2]), theirs, same_dtype=False).verdict == "fail"


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_specials_must_be_at_the_same_places(special):
    theirs = np.array([1.0, special, 3.0], np.float32)
    assert judge(theirs, theirs).verdict == "pass"
    for ours in ([1.0, 0.0, 3.0], [special, special, 3.0], [1.0, -special if special == special else 1e5, 3.0]):
        found = judge(np.array(ours, np.float32), theirs)
        assert (found.verdict, found.nan_match) == ("fail", False)
        assert found.worst in ((0,), (1,))


def test_a_reference_of_nothing_but_nan_proves_nothing():
    nan = np.full(3, np.nan, np.float32)
    assert judge(nan, nan).verdict == "not-run"


def test_lowest_numbers_that_mark_masked_scores_are_no_scale():
    low = np.finfo(np.float32).min
    theirs = np.array([low, 1.0, 2.0], np.float32)
    assert judge(theirs, theirs).verdict == "pass"
    assert judge(np.array([low, 1.0, 2.1], np.float32), theirs).verdict == "fail"
    assert judge(np.array([0, 1.0, 2.0], np.float32), theirs).verdict == "fail"


@pytest.mark.parametrize(("fill", "dtype"), [(-1e9, np.float32), (-1e4, np.float32), (-65504, np.float16)])
def test_numbers_that_fill_masked_places_are_no_scale(fill, dtype):
    reference = np.linspace(-3, 3, 14).reshape(2, 7).astype(dtype)
    reference[:, 5:] = fill
    wrong, moved = reference.copy(), reference.copy()
    wrong[0, 0] += 1
    moved[1, 6] *= dtype(0.9)
    granted = Granted(1e-2, "here")
    found = compare(wrong, reference, case="c", output_name="y", granted=granted)
    assert (found.verdict, found.worst) == ("fail", (0, 0))
    assert found.needed == pytest.approx(1 / 3, rel=1e-2)
    assert compare(moved, reference, case="c", output_name="y", granted=granted).worst == (1, 6)
    assert compare(reference, reference, case="c", output_name="y", granted=granted).needed == 0


def test_one_large_number_is_a_value_and_no_fill():
    reference = np.array([[5e4, 1.0, 2.0]], np.float32)
    found = compare(reference + np.float32(1), reference, case="c", output_name="y", granted=Granted(1e-4, "here"))
    assert found.needed == pytest.approx(2e-5)


def test_integers_are_equal_or_wrong():
    theirs = np.array([30000, 1], np.int64)
    assert judge(theirs, theirs).verdict == "pass"
    found = judge(theirs + np.array([1, 0]), theirs)
    assert (found.verdict, found.worst, found.max_abs) == ("fail", (0,), 1.0)
    assert judge(np.array([True]), np.array([False])).verdict == "fail"


def test_cosine_and_top1():
    rng = np.random.default_rng(0)
    theirs = rng.standard_normal((5, 9)).astype(np.float32)
    ours = theirs.copy()
    ours[0] = np.roll(ours[0], 1)
    found = judge(ours, theirs, output_name="logits")
    assert found.top1 == pytest.approx(0.8)
    assert 0 < found.cosine < 0.99
    assert judge(ours, theirs).top1 is None
    assert judge(theirs, theirs).cosine == pytest.approx(1.0)


def test_padded_positions_are_set_apart_only_when_they_differ():
    theirs = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
    same = judge(theirs, theirs, masks=(mask,))
    assert (same.verdict, same.note) == ("pass", None)
    padded = theirs.copy()
    padded[1, 3] += 1.0
    found = judge(padded, theirs, masks=(mask,))
    assert found.verdict == "pass"
    assert "padded positions differ by" in found.note
    assert found.needed == 0.0
    padded[1, 3, 0] = np.nan
    assert "NaN" in judge(padded, theirs, masks=(mask,)).note


def test_a_difference_at_a_real_position_is_never_hidden():
    theirs = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
    wrong = theirs.copy()
    wrong[1, 3] += 9.0
    wrong[1, 1, 2] += 0.01
    found = judge(wrong, theirs, masks=(mask,))
    assert (found.verdict, found.worst) == ("fail", (1, 1, 2))
    wrong = theirs.copy()
    wrong[1, 3] += 9.0
    assert judge(wrong, theirs).verdict == "fail"  # no mask
    assert judge(wrong, theirs, masks=(mask, ~mask)).verdict == "fail"  # no telling which
    assert judge(wrong.transpose(2, 0, 1), theirs.transpose(2, 0, 1), masks=(mask,)).verdict == "fail"


def test_a_sample_that_is_masked_out_entirely_is_set_apart_in_pooled_outputs():
    theirs = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    dead = np.ones((3, 5), bool)
    dead[2] = False
    wrong = theirs.copy()
    wrong[2] += 1.0
    found = judge(wrong, theirs, masks=(dead,))
    assert (found.verdict, found.needed) == ("pass", 0.0)
    assert "padded positions differ" in found.note
    wrong[1, 3] += 0.1
    assert judge(wrong, theirs, masks=(dead,)).worst == (1, 3)
    assert judge(wrong, theirs, masks=(dead[:, ::-1] | True,)).verdict == "fail"


def test_padded_differences_are_noted_in_the_report():
    def other_padding(feeds):
        return [mean_of_real(feeds)[0] + (feeds["mask"][..., None] == 0).astype(np.float32)]

    report = check(other_padding)
    assert report.verdict == "pass"
    padded = sum(case.padded for case in CASES)
    assert f"'y' differs at padded positions in {padded} cases; the real ones were judged" in report.notes


def test_half_precision_is_judged_against_the_unfused_graph():
    theirs = np.linspace(-1, 1, 50, dtype=np.float16)
    plain = theirs + np.float16(0.002)
    granted = grant(1e-4, "b", theirs, theirs, plain)
    assert granted.tolerance == pytest.approx(2 * relative_error(plain, theirs))
    assert "2x the unfused error" in granted.basis
    assert grant(1e-4, "b", theirs, theirs, theirs * np.float16(2)).tolerance == 0.05
    single = theirs.astype(np.float32)
    told = grant(1e-4, "b", single, single, plain.astype(np.float32))
    assert told.tolerance == 1e-4
    assert "unfused needs 2.0e-03" in told.basis


# validate


def test_equal_graphs_pass_on_every_case():
    report = check(lambda feeds: [v * np.float32(1 + 1e-6) for v in mean_of_real(feeds)])
    assert report.verdict == "pass"
    assert len(report.comparisons) == len(CASES)
    assert report.notes == ()
    assert 0 < report.worst.needed < 1e-5
    assert from_json(to_json(report), ParityReport) == report


def test_a_dropped_mask_fails_on_padded_cases_only():
    report = check(lambda feeds: mean_of_real(feeds | {"mask": np.ones_like(feeds["mask"])}))
    assert report.verdict == "fail"
    assert {c.verdict for c in report.comparisons if "mask=full" in c.case} == {"pass"}
    assert {c.verdict for c in report.comparisons if "mask=left" in c.case} == {"fail"}


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_output_fails_even_if_the_reference_agrees(value):
    def constant(feeds):
        return [np.full(feeds["x"].shape, value, np.float32)]

    report = check(constant, constant)
    assert report.verdict == "fail"
    assert report.worst.case == "sensitivity"
    assert "insensitive" in report.worst.note


def test_an_output_that_no_input_reaches_need_not_react_beside_one_that_does():
    def both(feeds):
        return [*mean_of_real(feeds), np.full(3, 0.5, np.float32)]

    given = {"output_names": ("y", "points"), "settled": {"points"}}
    report = validate(both, both, CASES, **given)
    assert report.verdict == "pass"
    assert "'points' depends on no value of an input" in report.notes
    assert {c.output for c in report.comparisons} == {"y", "points"}
    assert validate(both, both, CASES, output_names=("y", "points")).verdict == "fail"
    wrong = validate(lambda feeds: [both(feeds)[0], np.full(3, 0.6, np.float32)], both, CASES, **given)
    assert wrong.verdict == "fail"
    alone = validate(
        lambda feeds: both(feeds)[1:], lambda feeds: both(feeds)[1:], CASES, output_names=("p",), settled="p"
    )
    assert alone.verdict == "fail"


def test_an_output_that_moves_less_than_the_tolerance_is_insensitive():
    def blunt(feeds):
        return [np.float32(1000.0) + feeds["x"] * np.float32(1e-3)]

    assert check(blunt, blunt).verdict == "fail"
    assert check(blunt, blunt, tolerance=1e-7, cases=CASES).verdict == "pass"


def test_a_single_case_is_tried_with_other_values():
    one = CASES[:1]
    assert check(mean_of_real, cases=one).verdict == "pass"
    constant = [np.arange(4, dtype=np.float32)]
    assert check(lambda feeds: constant, lambda feeds: constant, cases=one).verdict == "fail"


def test_nothing_to_compare_fails():
    assert check(mean_of_real, cases=()).verdict == "fail"
    report = validate(lambda feeds: [], lambda feeds: [], CASES, output_names=())
    assert report.verdict == "fail"
    assert "no outputs" in " ".join(report.notes)
    assert check(lambda feeds: mean_of_real(feeds) * 2).verdict == "fail"


def boom(feeds):
    raise ValueError("sizes of\ntensors must match")


def test_a_case_the_reference_cannot_run_is_not_run_and_counted():
    def picky(feeds):
        return boom(feeds) if feeds["x"].shape[1] == 1 else mean_of_real(feeds)

    report = check(mean_of_real, picky)
    assert report.verdict == "pass"
    skipped = [c for c in report.comparisons if c.verdict == "not-run"]
    assert [c.case for c in skipped] == ["batch=1 sequence=1 mask=full"]
    assert "ValueError: sizes of tensors must match" in skipped[0].note
    assert any(note.startswith("1 of ") for note in report.notes)


def test_all_cases_not_run_is_not_a_pass():
    report = check(mean_of_real, boom)
    assert report.verdict == "not-run"
    said = refusal(report)
    assert said is not None and "\n" not in said
    assert said.startswith("eager float32 runs none of the ") and said.endswith(
        "ValueError: sizes of tensors must match"
    )


def test_a_reference_that_runs_somewhere_refuses_nothing():
    assert refusal(check(mean_of_real)) is None and refusal(check(boom)) is None


def test_what_onnxruntime_says_is_told_without_its_source():
    text = (
        "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Reshape node. Name:'r' Status "
        "Message: /onnxruntime_src/core/reshape_helper.h:91 ns::Helper::Helper(const ns::Shape&, bool) a == b was false"
    )
    assert in_one_line(ValueError(text)) == (
        "ValueError: while running Reshape node. Name:'r' Status Message: a == b was false"
    )


def test_a_case_only_the_graph_cannot_run_fails():
    report = check(boom)
    assert report.verdict == "fail"
    assert report.worst.note.startswith("runs in the reference, fails here")


def test_a_bug_of_ours_is_no_verdict():
    def broken(feeds):
        raise DeploymlBug("invariant")

    with pytest.raises(DeploymlBug):
        check(broken)


def test_runs_that_differ_are_said_so():
    rng = np.random.default_rng(0)

    def noisy(feeds):
        return [v + np.float32(1e-6) * rng.standard_normal(v.shape).astype(np.float32) for v in mean_of_real(feeds)]

    report = check(noisy)
    assert report.verdict == "pass"
    assert any("not deterministic: 'y'" in note for note in report.notes)


def test_outputs_that_the_runner_reuses_are_copied():
    buffers: dict[tuple[int, ...], np.ndarray] = {}

    def reusing(feeds):
        value = mean_of_real(feeds)[0]
        buffer = buffers.setdefault(value.shape, np.empty_like(value))
        buffer[...] = value
        return [buffer]

    assert check(reusing, unfused=reusing).verdict == "pass"


def test_the_unfused_error_is_stated_and_a_missing_one_said():
    assert "unfused needs 0.0e+00" in check(mean_of_real, unfused=mean_of_real).comparisons[0].basis
    assert any("no yardstick" in note for note in check(mean_of_real, unfused=boom).notes)


def test_shuffling_keeps_shapes_ranges_and_masks():
    feeds = {"ids": np.array([[1, 5, 9]]), "mask": np.array([[1, 1, 0]]), "one": np.array([3])}
    moved = shuffled(feeds)
    assert sorted(moved["ids"].ravel()) == [1, 5, 9]
    assert (moved["ids"] != feeds["ids"]).any()
    assert (moved["mask"] == feeds["mask"]).all()
    assert moved["one"] == 2
    assert (shuffled({"mask": feeds["mask"]})["mask"] != feeds["mask"]).any()


def test_an_integer_output_may_react_to_masks_alone():
    def with_lengths(feeds):
        return [*mean_of_real(feeds), feeds["mask"].sum(1) // 32]

    x = np.random.default_rng(0).normal(size=(2, 64, 4)).astype("f4")
    case = Case(name="one", feeds={"x": x, "mask": np.ones((2, 64), "i8")})
    both = {"cases": (case,), "output_names": ("y", "lengths")}
    assert validate(with_lengths, with_lengths, **both).verdict == "pass"

    def as_floats(feeds):
        return [*mean_of_real(feeds), with_lengths(feeds)[1].astype(np.float32)]

    report = validate(as_floats, as_floats, **both)
    assert report.verdict == "fail"
    assert report.worst.output == "lengths"


def test_shortening_cuts_masks_and_nothing_else():
    feeds = {"x": np.ones((1, 3), "f4"), "ids": np.array([[1, 5, 9]]), "mask": np.array([[1, 1, 1]])}
    cut = shortened(feeds)
    assert cut["mask"].tolist() == [[1, 1, 0]]
    assert (cut["ids"] == feeds["ids"]).all()
    assert (cut["x"] == feeds["x"]).all()


def test_worst_puts_a_failure_without_a_number_first():
    good = judge(np.ones(2, "f4"), np.ones(2, "f4"))
    bad = replace(good, verdict="fail", needed=None)
    far = replace(good, verdict="fail", needed=math.inf)
    report = ParityReport(verdict="fail", reference="r", comparisons=(good, far, bad))
    assert report.worst in (far, bad)
    assert ParityReport(verdict="fail", reference="r", comparisons=(good, bad)).worst is bad


def test_own_cases_need_no_grid():
    case = Case(name="sample.npz", feeds={"x": np.ones((1, 2, 4), "f4"), "mask": np.ones((1, 2), "i8")})
    assert check(mean_of_real, cases=(case,)).verdict == "pass"
