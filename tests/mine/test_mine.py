"""Candidates and filters equal a brute-force reading of eq. 9, ties and duplicates included."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from raycd import mine
from raycd.config import MineConfig
from raycd.data.schema import PSEUDO_TRIPLET
from raycd.errors import ConfigError, DataError
from raycd.report.mining import summary, warnings
from tests.mine.cases import (
    Case,
    cosine,
    oracle_neighbours,
    oracle_pool,
    random_case,
    settings_of,
    thresholds,
)


def oracle_pseudo(case: Case, settings: MineConfig) -> list[dict[str, Any]]:
    pseudo = []
    annotated = {(reference, target) for _, _, reference, target in case.triplets}
    for t, (triplet_id, category, reference, target) in enumerate(case.triplets):
        if target is None:
            continue
        for side, image in (("reference", reference), ("target", target)):
            pool = oracle_pool(case, category, settings.pool)
            found = oracle_neighbours(case, image, pool, settings.floor)
            ranked = [(rank, similarity, row) for rank, (similarity, row) in enumerate(found)]
            substitutes = [one for one in ranked if settings.eps_low <= one[1] <= settings.eps_high]
            for rank, similarity, row in substitutes[: settings.s_max]:
                new = {"reference": reference, "target": target} | {side: case.ids[row]}
                if (
                    new["reference"] == new["target"]
                    or (new["reference"], new["target"]) in annotated
                ):
                    continue
                x = case.image_ND[case.ids.index(new["reference"])].astype(np.float64)
                y = case.image_ND[case.ids.index(new["target"])].astype(np.float64)
                query = x + case.text_TD[t].astype(np.float64)
                length = np.linalg.norm(query) * np.linalg.norm(y)
                score = round(float(query @ y / length), 6) if length else 0.0
                if score > settings.alpha:
                    pseudo.append(
                        {
                            "triplet_id": triplet_id,
                            "category": category,
                            **new,
                            "side": side,
                            "replaced": image,
                        }
                        | {"similarity": similarity, "rank": rank, "score": score, "encoder": "abc"}
                    )
    return pseudo


def test_a_triplet_whose_image_has_no_features_is_an_error() -> None:
    case = random_case(0)
    with pytest.raises(DataError, match="have no features"):
        case._replace(
            ids=["elsewhere", *case.ids[1:]], triplets=[("t", "dress", "image-0", "image-1")]
        ).rows()


@pytest.mark.parametrize("pool", ["all", "category"])
@pytest.mark.parametrize("kind", ["smooth", "ties", "duplicates"])
@pytest.mark.parametrize("seed", range(6))
def test_pseudo_triplets_equal_the_oracle(seed: int, kind: str, pool: str) -> None:
    case = random_case(seed, kind=kind)
    rng = np.random.default_rng(seed)
    present = sorted(
        {cosine(case.image_ND[a], case.image_ND[b]) for a in range(30) for b in range(a)}
    )
    for _ in range(4):
        low, high = (
            sorted(rng.choice(present, 2)) if len(present) > 1 else (0.3, 1.0)
        )  # thresholds hit exactly
        s_max, alpha = int(rng.integers(1, 6)), float(rng.choice([-1.0, 0.0, 0.4]))
        settings = settings_of(
            pool=pool, eps_low=low, eps_high=min(high, 1.0), s_max=s_max, alpha=alpha
        )
        pseudo, counts = case.pseudo(settings)
        assert pseudo.to_pylist() == oracle_pseudo(case, settings)
        assert pseudo.schema == PSEUDO_TRIPLET
        assert counts["after_alpha"] == len(pseudo)


def line_case(similarities: list[float], *, target: str = "image-1") -> Case:
    """Return a triplet (image-0, target) and images 1, 2, ... at these similarities to image 0."""
    image_ND = np.array([[1.0, 0.0]] + [[s, np.sqrt(1 - s * s)] for s in similarities], np.float32)
    ids = [f"image-{i}" for i in range(len(image_ND))]
    return Case(
        ids,
        image_ND,
        {"dress": ids},
        [("t", "dress", ids[0], target)],
        np.zeros((1, 2), np.float32),
    )


def substitutes(pseudo: pa.Table, side: str) -> list[str]:
    names: list[str] = pseudo.filter(pc.equal(pseudo["side"], side))[side].to_pylist()
    return names


def test_both_thresholds_are_inclusive() -> None:
    case = line_case([0.0, 0.9, 0.95, 0.995, 0.899999, 0.995001])
    settings = settings_of(eps_low=0.9, eps_high=0.995, alpha=-1)
    assert substitutes(case.pseudo(settings)[0], "reference") == ["image-4", "image-3", "image-2"]


def test_alpha_must_be_exceeded() -> None:
    case = line_case([0.8, 0.9])
    score = case.candidates(settings_of())["score"].to_pylist()[0]
    below = settings_of(alpha=score - 1e-6)
    assert len(case.pseudo(below)[0]) == 1 + len(case.pseudo(settings_of(alpha=score))[0])


def test_substitutes_are_counted_before_replacements_that_say_nothing_are_dropped() -> None:
    """Image 1 is the target: replacing the reference by it is useless, yet it counts for s_max."""
    case = line_case([0.95, 0.94, 0.93])
    settings = settings_of(eps_low=0.9, s_max=2, alpha=-1)
    pseudo, counts = case.pseudo(settings)
    assert substitutes(pseudo, "reference") == ["image-2"]
    assert counts["degenerate"] == 2
    assert pseudo.to_pylist() == oracle_pseudo(case, settings)


def test_counts_say_what_each_constraint_left() -> None:
    case = line_case([-0.9, 0.95, 0.94, 0.93, 0.5, -0.95])
    _, counts = case.pseudo(settings_of(floor=0.4, eps_low=0.9, s_max=2, alpha=-1))
    reference, target = counts["groups"]
    assert (reference["category"], reference["side"]) == ("dress", "reference")
    assert (reference["candidates"], reference["after_similarity"], reference["after_s_max"]) == (
        4,
        3,
        2,
    )
    assert (target["candidates"], target["after_similarity"]) == (1, 1)
    assert (counts["candidates"], counts["after_s_max"], counts["images"]) == (5, 3, 2)
    assert counts["images_without_substitute"] == 0
    assert summary(counts)[-2].split() == ["total", "5", "4", "3", "3"]


def test_images_without_any_neighbour_are_counted() -> None:
    _, counts = line_case([-0.5, -0.6]).pseudo(
        settings_of(floor=0.999, eps_low=0.999, eps_high=1.0)
    )
    assert (counts["images"], counts["images_without_substitute"], counts["candidates"]) == (
        2,
        2,
        0,
    )
    assert warnings(counts, MineConfig()) == [
        "no image has a neighbour at similarity 0.999 or above: lower mine.floor and mine again"
    ]


def test_images_whose_neighbours_are_too_few_to_fill_s_max_are_counted() -> None:
    """The three neighbours kept of image 0 are too near; more within the thresholds may follow."""
    case = line_case([0.9999, 0.9998, 0.9997, 0.95, 0.94], target="image-5")
    short = settings_of(neighbours=3, floor=0.9, eps_low=0.9, s_max=1, alpha=-1)
    _, counts = case.pseudo(short)
    assert counts["images_cut_short"] == 1
    assert "raise mine.neighbours" in warnings(counts, short)[-1]
    _, counts = case.pseudo(short.model_copy(update={"neighbours": 4}))
    assert counts["images_cut_short"] == 0


def test_a_setting_that_leaves_nothing_is_named() -> None:
    case = line_case([0.8, 0.7])
    _, counts = case.pseudo(settings_of(eps_low=0.99, eps_high=0.995))
    assert warnings(counts, MineConfig())[0].startswith(
        "no substitute lies within mine.eps_low 0.99 to mine.eps_high 0.995"
    )
    _, counts = case.pseudo(settings_of(alpha=1.0, eps_high=1.0))
    assert f"lower it below {counts['best_score']}" in warnings(counts, MineConfig())[0]


def test_a_share_that_leaves_nothing_is_named_as_it_was_set() -> None:
    shares = settings_of(thresholds="quantile", floor=-1, eps_low=0, eps_high=1, alpha=1.0)
    _, counts = line_case([0.8, 0.7]).pseudo(shares)
    [said, *_] = warnings(counts, shares)
    assert said.startswith("no score is greater than mine.alpha 1, score 1")
    assert said.endswith(": lower it")


def test_settings_that_leave_nearly_all_are_named() -> None:
    every = settings_of(eps_low=-1, eps_high=1, alpha=-1)
    said = warnings(random_case(0).pseudo(every)[1], every)
    assert "100.0% of the candidates" in said[0]
    assert said[1] == "mine.alpha -1 leaves 100.0% of the pseudo triplets: raise it to filter more"


def test_the_candidates_survive_parquet_and_any_order_of_rows(tmp_path: Path) -> None:
    settings = settings_of(pool="category", s_max=2)
    table = random_case(3, kind="ties").candidates(settings)
    expected, counts = mine.filter_candidates(table, **thresholds(settings))
    pq.write_table(table, tmp_path / "candidates.parquet", row_group_size=11)
    read = pq.read_table(tmp_path / "candidates.parquet")
    assert mine.filter_candidates(read, **thresholds(settings)) == (expected, counts)
    shuffled = read.take(np.random.default_rng(0).permutation(len(read)))
    pseudo, again = mine.filter_candidates(shuffled, **thresholds(settings))
    order = ["triplet_id", "side", "rank"]
    keys = [(key, "ascending") for key in order]
    assert pseudo.sort_by(keys).equals(expected.sort_by(keys))
    assert again == counts


def test_scores_do_not_depend_on_how_the_candidates_are_divided() -> None:
    rng = np.random.default_rng(0)
    image_ND, text_TD = (
        rng.normal(size=(50, 640)).astype(np.float32),
        rng.normal(size=(9, 640)).astype(np.float32),
    )
    image_ND[0] = 0
    reference_C, target_C, triplet_C = (
        rng.integers(0, n, 700).astype(np.int32) for n in (50, 50, 9)
    )
    whole = mine.matching_scores(image_ND, text_TD, reference_C, target_C, triplet_C)
    for size in (1, 13, 256, 300):
        parts = [
            mine.matching_scores(
                image_ND,
                text_TD,
                reference_C[s : s + size],
                target_C[s : s + size],
                triplet_C[s : s + size],
            )
            for s in range(0, 700, size)
        ]
        assert np.array_equal(np.concatenate(parts), whole)
    assert (whole[target_C == 0] == 0).all()


def test_the_memory_grows_with_the_candidates_and_not_with_all_that_could_be() -> None:
    """Of 500 pools and 20,000 images most have no candidate."""
    settings = settings_of(pool="category")
    found = random_case(0).candidates(settings)
    wide = found
    for name, others in (("pool", 500), ("replaced", 20_000)):
        column = found[name].combine_chunks()
        words = pa.concat_arrays([pa.array(map(str, range(others))), column.dictionary])
        codes = pc.add(column.indices, pa.scalar(others, pa.int32()))
        column = pa.DictionaryArray.from_arrays(codes, words)
        wide = wide.set_column(found.schema.get_field_index(name), found.field(name), column)
    tracemalloc.start()
    pseudo, counts = mine.filter_candidates(wide, **thresholds(settings))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (pseudo, counts) == mine.filter_candidates(found, **thresholds(settings))
    assert peak < 10 << 20


def test_thresholds_below_the_floor_of_the_table_are_refused() -> None:
    table = line_case([0.8, 0.9]).candidates(settings_of(floor=0.7, eps_low=0.7))
    with pytest.raises(ConfigError, match=r"at least 0\.7 \(mine\.floor\)"):
        mine.filter_candidates(table, eps_low=0.6, eps_high=0.9, s_max=4, alpha=0)
    with pytest.raises(ConfigError, match="no substitute can meet"):
        mine.filter_candidates(table, eps_low=0.95, eps_high=0.9, s_max=4, alpha=0)


def test_a_table_that_lost_its_metadata_is_refused() -> None:
    table = line_case([0.8, 0.9]).candidates(settings_of()).replace_schema_metadata(None)
    with pytest.raises(DataError, match="does not say how it was made"):
        mine.filter_candidates(table, eps_low=0.6, eps_high=0.9, s_max=4, alpha=0)
