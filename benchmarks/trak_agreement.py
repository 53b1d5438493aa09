"""TRAK from an index's sketches against the traker package's scores on the same features: do they rank alike?

The rows' sketches, 1 − p and the queries' sketches of an index of margins are put into a ``TRAKer`` as the features it
would have made, and its own ``finalize_features`` and ``finalize_scores`` run, in float32. It divides by constants of
its own, so ranks are compared: Spearman's correlation over all rows, of each query. λ is 0, the package's default,
against ``attribution.baselines.trak``, and every ``--relative-noise`` times the mean squared norm, against what the
index answers from its stored Gram matrix (``indexer query --method trak``). λ = 0
has no answer where the rows do not span the dimensions, and is left out there.

traker lives in an environment of its own that has this project as well (docs/benchmarks.md says how to make it).

Example:
    python -m benchmarks.trak_agreement indexes/digits-margins --queries 50 --json
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attribution.baselines import trak
from attribution.errors import NotPositiveDefiniteError
from benchmarks.measuring import Report, print_json, say
from indexer.attributor import Attributor
from indexer.attributor.baselines import ONE_MINUS_P
from sketchstore.reader import Index, open_index

Scores = NDArray[np.float64]


def package_scores(rows: Tensor, one_minus_p: Tensor, queries: Tensor, regularisation: float) -> Scores:
    """Let traker score rows whose features are given.

    Args:
        rows: Sketches of the training examples' margins, [n, d].
        one_minus_p: 1 − p of each, [n].
        queries: Sketches of the queries' margins, [q, d].
        regularisation: λ.

    Returns:
        Scores [q, n].
    """
    from trak import TRAKer
    from trak.projectors import BasicProjector

    model = nn.Linear(1, 2).eval()  # never called: its features are replaced below
    with tempfile.TemporaryDirectory() as folder:
        tracer = TRAKer(
            model,
            task="image_classification",
            train_set_size=len(rows),
            save_dir=folder,
            device="cpu",
            projector=BasicProjector(4, rows.shape[1], 0, "normal", "cpu", block_size=rows.shape[1]),
            use_half_precision=False,
            lambda_reg=regularisation,
            logging_level=logging.ERROR,
        )
        tracer.load_checkpoint(model.state_dict(), model_id=0)
        store = tracer.saver.current_store
        store["grads"][:] = rows.numpy()
        store["out_to_loss"][:] = one_minus_p[:, None].numpy()
        store["is_featurized"][:] = 1
        tracer.saver.model_ids[0]["is_featurized"] = 1
        tracer.saver.serialize_current_model_id_metadata()
        tracer.finalize_features()
        tracer.start_scoring_checkpoint("queries", model.state_dict(), 0, len(queries))
        tracer.saver.current_store["queries_grads"][:] = queries.numpy()
        return np.array(tracer.finalize_scores("queries"), dtype=np.float64).T


def rank_correlations(ours: Scores, theirs: Scores) -> list[float]:
    """Spearman's correlation of each query's scores over the rows.

    Args:
        ours: Scores [q, n].
        theirs: Scores [q, n].

    Returns:
        q correlations.
    """
    found = []
    for left, right in zip(ours, theirs, strict=True):
        ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (left, right)]
        found.append(float(np.corrcoef(*ranks)[0, 1]))
    return found


def service_scores(attributor: Attributor, query_rows: list[int], relative_noise: float) -> tuple[Scores, float]:
    """Ask the index for TRAK's scores of all rows, as a service does.

    Args:
        attributor: The open index.
        query_rows: Stored queries.
        relative_noise: σ² in units of the mean squared norm.

    Returns:
        Scores [q, n], and σ².
    """
    index, found, noise = attributor.index, [], 0.0
    ids = [index.examples.id(row) for row in range(index.num_rows)]
    for row in query_rows:
        query = attributor.resolve_query_row(row)
        scores = attributor.scores(query, ids, criteria=[], relative_noise=relative_noise, methods=["trak"])
        found.append([member.scores["trak"] for member in scores.members])
        noise = scores.noise_variance
    return np.array(found), noise


def unregularised_scores(queries: Tensor, rows: Tensor, one_minus_p: Tensor) -> Scores | None:
    """Score by the library with λ = 0; None, and a line that says so, where ΦᵀΦ has no inverse.

    Args:
        queries: Sketches of the queries' margins, [q, d].
        rows: Sketches of the training examples' margins, [n, d].
        one_minus_p: 1 − p of each, [n].

    Returns:
        Scores [q, n], or None.
    """
    try:
        scores: Scores = trak(queries, rows, one_minus_p, 0.0).numpy()
        return scores
    except NotPositiveDefiniteError:
        say(f"λ = 0 has no answer: {len(rows)} rows do not span {rows.shape[1]} dimensions; it is left out")
        return None


def compare(index: Index, num_queries: int, relative_noises: list[float]) -> dict[str, Any]:
    """Compare both, for λ = 0 and for every noise.

    Args:
        index: An index of margins with stored queries.
        num_queries: How many of them are asked about.
        relative_noises: λ in units of the mean squared norm.

    Returns:
        The figures.
    """
    attributor = Attributor(index, engine="brute_force")
    view = index.view("margin")
    rows = view.sketches(slice(0, index.num_rows), dtype=torch.float64)
    one_minus_p = index.column(ONE_MINUS_P).double()
    assert index.queries is not None, "the index has no stored queries"
    asked = list(range(min(num_queries, index.queries.count)))
    queries = torch.stack([attributor.resolve_query_row(row).sketch for row in asked])
    comparisons = []
    pairs = [
        ("library", 0.0, scores) for scores in [unregularised_scores(queries, rows, one_minus_p)] if scores is not None
    ]
    for relative in relative_noises:
        scores, noise = service_scores(attributor, asked, relative)
        pairs.append((f"index, relative noise {relative:g}", noise, scores))
    for name, regularisation, ours in pairs:
        theirs = package_scores(rows.float(), one_minus_p.float(), queries.float(), regularisation)
        found = rank_correlations(ours, theirs)
        comparisons.append(
            {"ours": name, "lambda": regularisation, "least": min(found), "mean": sum(found) / len(found)}
        )
        say(f"{name}: least rank correlation {min(found):.6f}, mean {comparisons[-1]['mean']:.6f}")
    return {
        "index": index.name,
        "rows": index.num_rows,
        "sketch_dim": index.sketch_dim,
        "queries": len(asked),
        "traker": version("traker"),
        "comparisons": comparisons,
    }


def main() -> None:
    """Parse the command line, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path, help="an index of margins")
    parser.add_argument("--queries", type=int, default=50, help="how many stored queries (default: 50)")
    parser.add_argument("--relative-noise", type=float, nargs="*", default=[1.0, 100.0], help="λ (default: 1 100)")
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")
    arguments = parser.parse_args()
    report = Report("trak_agreement", {name: str(value) for name, value in vars(arguments).items()})
    whole = report.finish(compare(open_index(arguments.index), arguments.queries, arguments.relative_noise))
    if arguments.json:
        print_json(whole)


if __name__ == "__main__":
    main()
