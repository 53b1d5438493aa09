import pytest
import torch

from indexer.measurement import MeasurementError, check_targets, make_measurement

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]], dtype=torch.float64)


def test_label_logit_is_the_logit_of_the_label() -> None:
    measurement = make_measurement("label_logit")
    assert measurement.views(3) == ["own"]
    assert measurement.comparable == "label"
    labels = measurement.targets("own", torch.tensor([2, 1]))
    assert torch.vmap(measurement.value)(LOGITS, labels).tolist() == [0.5, 3.0]


def test_class_logit_measures_every_row_at_the_class_of_the_view() -> None:
    measurement = make_measurement("class_logit")
    assert measurement.views(3) == ["0", "1", "2"]
    assert measurement.comparable == "all"
    targets = measurement.targets("1", torch.tensor([2, -1]))  # labels do not matter
    assert torch.vmap(measurement.value)(LOGITS, targets).tolist() == [-1.0, 3.0]


def test_margin_is_the_log_odds_of_the_label() -> None:
    measurement = make_measurement("margin")
    labels = measurement.targets("margin", torch.tensor([0, 2]))
    p = LOGITS.softmax(1)[torch.arange(2), labels]
    torch.testing.assert_close(torch.vmap(measurement.value)(LOGITS, labels), (p / (1 - p)).log())


def test_margin_stays_finite_where_the_probability_rounds_to_one() -> None:
    value = make_measurement("margin").value(torch.tensor([200.0, 0.0, 0.0]), torch.tensor(0))
    torch.testing.assert_close(value, torch.tensor(200.0) - torch.tensor(2.0).log())


def test_margin_gradient_is_finite_and_correct() -> None:
    logits = LOGITS[0].clone().requires_grad_()
    make_measurement("margin").value(logits, torch.tensor(1)).backward()
    others = LOGITS[0, [0, 2]].softmax(0)
    torch.testing.assert_close(logits.grad, torch.tensor([-others[0], 1.0, -others[1]], dtype=torch.float64))


def test_class_logit_can_be_limited_to_some_classes() -> None:
    measurement = make_measurement("class_logit", classes=[2, 0])
    assert measurement.views(3) == ["0", "2"]
    with pytest.raises(MeasurementError, match=r"no view '1'.*\[0, 2\]"):
        measurement.targets("1", torch.tensor([0]))
    with pytest.raises(MeasurementError, match="outputs 0 to 1"):
        measurement.views(2)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("logit", {}, "choose from label_logit"),
        ("margin", {"classes": [1]}, "class_logit only"),
        ("custom", {}, "needs the recipe's measurement function"),
        ("margin", {"function": lambda outputs, label: outputs}, "ask for custom"),
        ("class_logit", {"classes": []}, "different numbers"),
        ("class_logit", {"classes": [1, 1]}, "different numbers"),
        ("class_logit", {"classes": [-1]}, "different numbers"),
    ],
)
def test_a_measurement_that_means_nothing_is_refused(name, arguments, message) -> None:
    with pytest.raises(MeasurementError, match=message):
        make_measurement(name, **arguments)


@pytest.mark.parametrize("name", ["label_logit", "margin", "class_logit"])
def test_an_unknown_view_is_refused(name: str) -> None:
    with pytest.raises(MeasurementError, match="no view 'other'"):
        make_measurement(name).targets("other", torch.tensor([0]))


def test_margin_needs_two_outputs() -> None:
    with pytest.raises(MeasurementError, match="two outputs"):
        make_measurement("margin").views(1)


def test_custom_measurement_is_the_users_function() -> None:
    measurement = make_measurement("custom", function=lambda outputs, label: outputs[0] * outputs[1])
    assert measurement.views(2) == ["custom"]
    assert torch.vmap(measurement.value)(LOGITS, torch.tensor([0, 0])).tolist() == [-2.0, 0.0]


def test_custom_measurement_must_be_a_scalar() -> None:
    with pytest.raises(MeasurementError, match=r"one scalar per example, got shape \[3\]"):
        make_measurement("custom", function=lambda outputs, label: outputs).value(LOGITS[0], torch.tensor(0))


def test_targets_must_be_integers_within_the_outputs() -> None:
    measurement = make_measurement("margin")
    check_targets(measurement, torch.tensor([0, 2]), 3)
    with pytest.raises(MeasurementError, match="integer labels"):
        check_targets(measurement, torch.tensor([0.0]), 3)
    with pytest.raises(MeasurementError, match="label 3"):
        check_targets(measurement, torch.tensor([0, 3]), 3)
