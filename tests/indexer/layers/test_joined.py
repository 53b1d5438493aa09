"""Parts of a batch become one without existing twice."""

import weakref

import pytest
import torch

from indexer.layers.gradients import Call, Captured, joined
from indexer.layers.kinds import PositionWise

KIND = PositionWise(transposed=False)


def captured(rows: int) -> Captured:
    part = Captured()
    for name in ("first", "second"):  # each called twice
        part.calls[name] = [Call(KIND, torch.randn(rows, 2, 3), torch.randn(rows, 2, 4)) for _ in range(2)]
    part.vectors["bias"] = torch.randn(rows, 4)
    return part


def test_rows_of_parts_follow_one_another() -> None:
    parts = [captured(2), captured(3)]
    first = [part.calls["second"][1] for part in parts]
    biases = [part.vectors["bias"] for part in parts]
    whole = joined(parts)
    assert list(whole.calls) == ["first", "second"]
    found = whole.calls["second"][1]
    assert found.kind is KIND
    assert torch.equal(found.given, torch.cat([call.given for call in first]))
    assert torch.equal(found.delta, torch.cat([call.delta for call in first]))
    assert torch.equal(whole.vectors["bias"], torch.cat(biases))


def test_a_weight_of_the_parts_is_gone_before_the_next_is_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [captured(2), captured(3)]
    held = [weakref.ref(call.given) for part in parts for call in part.calls["first"]]
    alive: list[int] = []
    plain = torch.cat

    def counted(tensors: list[torch.Tensor]) -> torch.Tensor:
        alive.append(sum(reference() is not None for reference in held))
        return plain(tensors)

    monkeypatch.setattr(torch, "cat", counted)
    joined(parts)
    assert alive == [4] * 4 + [0] * 5
