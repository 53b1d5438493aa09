"""Small transformers models of the real architectures: hooks serve every parameter of theirs."""

import pytest
import torch
from torch import Tensor, nn

from indexer.featurise import Featuriser
from indexer.jacobians import TangentFeatures
from indexer.measurement import make_measurement
from indexer.parameters import select_parameters
from indexer.sketches import make_sketch
from indexer.sketches.kronecker_plan import kronecker_spec, plan_parts
from tests.indexer.cases import ROWS, Case, PairsRecipe, naive_tangent_features
from tests.indexer.test_featurise import examples_of

transformers = pytest.importorskip("transformers")


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def _bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=4,
        max_position_embeddings=12,
    )  # fmt: skip
    return _Logits(transformers.BertForSequenceClassification(config))


def _gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=12, num_labels=4, pad_token_id=0
    )
    return _Logits(transformers.GPT2ForSequenceClassification(config))


def _llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=4,
        max_position_embeddings=12, pad_token_id=0,
    )  # fmt: skip
    return _Logits(transformers.LlamaForSequenceClassification(config))


def _inputs() -> dict[str, Tensor]:
    lengths = torch.randint(3, 10, (ROWS, 1))
    mask = (torch.arange(10) < lengths).long()
    return {"input_ids": torch.randint(1, 50, (ROWS, 10)) * mask, "attention_mask": mask}


@pytest.mark.parametrize("model", [_bert, _gpt2, _llama], ids=["bert", "gpt2", "llama"])
def test_every_parameter_of_a_text_model_comes_from_hooks(model) -> None:
    case = Case(model, _inputs, measurement=make_measurement("margin"))
    built, inputs, labels = case.build()
    parameters = select_parameters(built)
    recipe = PairsRecipe()
    features = TangentFeatures(built, parameters, case.measurement, recipe.call, recipe.outputs)
    whole = torch.zeros(ROWS, parameters.num_parameters)
    for slab in features.slabs(inputs, labels, "margin"):
        rows, width = slab.gradients.shape
        whole[slab.first_row : slab.first_row + rows, slab.offset : slab.offset + width] = slab.gradients
    assert features.hooked_parameters == parameters.names
    assert features.notes == []
    expected = naive_tangent_features(case, built, inputs, labels, parameters)
    assert float((whole.double() - expected).norm() / expected.norm()) < 2e-5  # float32 against float64
    spec = kronecker_spec(parameters, 1024, 0, plan_parts(parameters, 1024))
    sketches = Featuriser(recipe, built, spec, case.measurement, parameters).sketch(
        examples_of(inputs, labels), view="margin"
    )
    formed = torch.zeros(ROWS, 1024)
    make_sketch(spec, parameters.num_parameters, parameters=parameters).add(whole, 0, formed)
    assert float((sketches - formed).norm() / formed.norm()) < 2e-5
