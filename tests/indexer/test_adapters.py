"""LoRA: only adapters have Jacobians, whether they were trained here or come from a folder."""

import peft
import pytest
import torch
import transformers

from indexer.build_settings import BuildSettings
from indexer.check import check_recipe
from indexer.preparation import prepare
from indexer.recipe import RecipeError
from indexer.recipe_file import load_recipe
from tests.indexer.text_models import save_model, write_pairs

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft about transformers 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "encoder", "bert", "encoder")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "decoder", "gpt2", "causal")


def settings(data, recipe, model, **options):
    chosen = {"model": str(model), **options}
    return BuildSettings(recipe=recipe, data_dir=data, options=chosen, sketch="sjlt", dim=64, threads=1)


@pytest.mark.parametrize("name", ["text-classification", "causal-lm"])
def test_only_adapters_and_the_new_head_are_measured(data, encoder, decoder, name):
    model = encoder if name == "text-classification" else decoder
    asked = settings(data, name, model, lora_rank=2, epochs=3, learning_rate=1e-3)
    prepared = prepare(asked)
    names = [parameter.name for parameter in prepared.parameters]
    assert any("lora_A" in name for name in names)
    assert all("lora_" in name or "modules_to_save" in name for name in names)
    findings = check_recipe(asked)
    assert [finding for finding in findings if not finding.ok] == []
    # What was loaded is what was trained on: the frozen weights are those of the model, B has moved from 0.
    base = prepared.recipe.base_model().state_dict()
    state = prepared.model.state_dict()
    for name, value in base.items():
        kept = [key for key in state if key.replace(".base_layer", "").endswith(name) and "modules_to_save" not in key]
        assert all(state[key].equal(value) for key in kept if "original_module" not in key or "weight" in key)
    assert any(value.abs().sum() > 0 for name, value in state.items() if "lora_B" in name)


def test_all_of_an_adapter_is_measured_where_parts_of_it_are_no_linear_layers(data, decoder, tmp_path):
    base = transformers.AutoModelForCausalLM.from_pretrained(decoder)
    config = peft.LoraConfig(
        r=2,
        use_dora=True,
        task_type="CAUSAL_LM",
        target_modules=["c_attn"],
        modules_to_save=["ln_f"],
        fan_in_fan_out=True,
    )
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    prepared = prepare(settings(data, "causal-lm", decoder, adapter=str(tmp_path / "adapter")))
    trained = [name for name, parameter in prepared.model.named_parameters() if parameter.requires_grad]
    assert [parameter.name for parameter in prepared.parameters] == trained
    for part in ("lora_A", "magnitude", "ln_f"):
        assert any(part in name for name in trained), part


def test_adapters_from_a_folder_are_the_ones_that_were_saved(data, decoder, tmp_path):
    trained = load_recipe(
        "causal-lm",
        data_dir=data,
        options={"model": str(decoder), "lora_rank": 2, "epochs": 3, "learning_rate": 1e-3},
    )
    model = trained.model()
    assert isinstance(model, peft.PeftModel)
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_recipe(
        "causal-lm", data_dir=data, options={"model": str(decoder), "adapter": str(tmp_path / "adapter")}
    )
    again = loaded.model()
    inputs, _ = trained.collate([trained.train_set()[row] for row in range(3)])
    with torch.no_grad():
        torch.testing.assert_close(loaded.call(again, inputs), trained.call(model, inputs))
    prepared = prepare(settings(data, "causal-lm", decoder, adapter=str(tmp_path / "adapter")))
    assert {part.split(".")[-3] for part in (parameter.name for parameter in prepared.parameters)} == {
        "lora_A",
        "lora_B",
    }
    alone = load_recipe("causal-lm", options=dict(loaded.options))  # as a service does, without data
    assert alone.architecture().state_dict().keys() == again.state_dict().keys()


def test_adapters_of_another_model_are_refused(data, encoder, decoder, tmp_path):
    options = {"model": str(decoder), "lora_rank": 2, "epochs": 1}
    load_recipe("causal-lm", data_dir=data, options=options).model().save_pretrained(tmp_path / "adapter")
    other = save_model(tmp_path / "other", "bert", "classifier")
    with pytest.raises(RecipeError, match="does not fit"):
        prepare(settings(data, "text-classification", other, adapter=str(tmp_path / "adapter"), labels="a,b"))


def test_adapters_must_bring_the_head_that_an_encoder_lacks(data, encoder, tmp_path):
    trained = load_recipe(
        "text-classification",
        data_dir=data,
        options={"model": str(encoder), "lora_rank": 2, "epochs": 1, "labels": "entailment,not_entailment"},
    )
    trained.model().save_pretrained(tmp_path / "whole")
    options = {"labels": "entailment,not_entailment"}
    prepare(settings(data, "text-classification", encoder, adapter=str(tmp_path / "whole"), **options))
    classifier, plain = transformers.AutoModelForSequenceClassification, transformers.AutoModel
    for auto_class, message in (
        (classifier, r"has no weights for classifier\.weight, classifier\.bias"),
        (plain, "does not fit the model: Found missing adapter keys"),  # peft names them otherwise there
    ):
        lora = peft.LoraConfig(r=2, target_modules=["query"])
        peft.get_peft_model(auto_class.from_pretrained(encoder), lora).save_pretrained(tmp_path / "bare")
        with pytest.raises(RecipeError, match=message):
            prepare(settings(data, "text-classification", encoder, adapter=str(tmp_path / "bare"), **options))
