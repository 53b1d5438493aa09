"""The recipe causal-lm: log-odds of sequences and tokens, gradients of each text alone, a model made from a table."""

import pytest
import torch

from indexer.build import build_index
from indexer.build_settings import BuildSettings, BuildSettingsError
from indexer.check import check_recipe
from indexer.preparation import prepare
from indexer.recipe import RecipeInputError, RecipeOptionError
from indexer.recipe_file import load_recipe
from indexer.recipes.causal_lm import token_log_odds
from sketchstore.reader import open_index
from tests.indexer.text_models import MINILM, PAIRS, save_model, write_pairs

NEW = {"model": "new", "tokenizer": MINILM, "epochs": 1, "width": 8, "depth": 2, "batch_size": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "decoder", "gpt2", "causal")


def settings(data, model, **changes):
    options = {"model": str(model), **changes.pop("options", {})}
    return BuildSettings(
        recipe="causal-lm", data_dir=data, options=options, **{"sketch": "sjlt", "dim": 64, "threads": 1, **changes}
    )


def naive_log_odds(model, tokens):
    """log p − log(1 − p) of every token but the first, from float64 probabilities of the text alone."""
    probabilities = model(input_ids=torch.tensor([tokens])).logits[0].softmax(-1)
    own = torch.stack([probabilities[place, token] for place, token in enumerate(tokens[1:])])
    return own.log() - (1 - own).log()


def test_log_odds_do_not_cancel_where_a_token_is_all_but_certain():
    logits = torch.tensor([[[0.0, 60.0, 1.0], [0.0, 1.0, 2.0]]])
    found = token_log_odds(logits, torch.tensor([[1, 0]]))[0]
    expected = [60 - torch.tensor([0.0, 1.0]).logsumexp(0), -torch.tensor([1.0, 2.0]).logsumexp(0)]
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("unit", ["sequence", "token"])
def test_check_proves_that_texts_do_not_see_their_batch_mates(data, decoder, unit):
    findings = check_recipe(settings(data, decoder, options={"unit": unit}))
    assert [finding for finding in findings if not finding.ok] == []
    assert len(findings) == 8


@pytest.mark.parametrize("layers", ["linear", "all"])
def test_features_in_a_padded_batch_are_float64_gradients_of_the_sum_of_log_odds(data, decoder, layers):
    prepared = prepare(settings(data, decoder, layers=layers))
    names = [parameter.name for parameter in prepared.parameters]
    assert "transformer.h.0.mlp.c_fc.weight" in names  # transformers' Conv1D
    assert ("transformer.wte.weight" in names) == (layers == "all")
    rows = prepared.train.collate(0, prepared.train.num_rows)
    found = torch.zeros(len(rows.examples), prepared.parameters.num_parameters)
    for slab in prepared.featuriser.slabs(rows.examples, rows.labels, "custom"):
        found[:, slab.offset : slab.offset + slab.gradients.shape[1]] = slab.gradients
    model = prepared.recipe.architecture()
    model.load_state_dict(prepared.model.state_dict())
    model.double()
    for row, example in enumerate(rows.examples):
        value = naive_log_odds(model, list(example.tokens["input_ids"])).sum()
        with torch.no_grad():
            measured = prepared.featuriser.outputs([example])[0]
        assert float(measured) == pytest.approx(value.item(), rel=1e-5)
        named = dict(model.named_parameters())
        gradients = torch.autograd.grad(value, [named[name] for name in names])
        expected = torch.cat([gradient.flatten() for gradient in gradients])
        assert (found[row] - expected).norm() / expected.norm() < 1e-5  # float32 rounding through two layers


def test_a_token_is_a_row_whose_margin_is_its_log_odds(data, decoder):
    recipe = load_recipe("causal-lm", data_dir=data, options={"model": str(decoder), "unit": "token"})
    whole = load_recipe("causal-lm", data_dir=data, options={"model": str(decoder)})
    model, documents = recipe.model().double(), whole.train_set()
    rows = recipe.train_set()
    assert len(rows) == sum(whole.length(documents[row]) - 1 for row in range(len(PAIRS)))
    first = whole.length(documents[0]) - 1
    tokens = list(documents[1].tokens["input_ids"])
    expected = naive_log_odds(model, tokens)
    second = [rows[first + place] for place in range(len(tokens) - 1)]
    inputs, labels = recipe.collate(second)
    assert labels.tolist() == tokens[1:]
    assert [recipe.id(example, 0, "train") for example in second[:2]] == ["train:1@1", "train:1@2"]
    logits = recipe.call(model, inputs)
    torch.testing.assert_close(token_log_odds(logits[:, None], labels[:, None])[:, 0], expected)
    assert recipe.preview(second[3]) == {"text": "cairo is now", "token": "home"}
    assert recipe.metadata(second[3]) == {"label": "entailment", "document": 1, "place": 4, "token": "home"}
    assert prepare(settings(data, decoder, options={"unit": "token"})).measurement.name == "margin"


def test_a_request_asks_about_a_text_or_about_its_last_token(data, decoder):
    recipe = load_recipe("causal-lm", data_dir=data, options={"model": str(decoder)})
    example = recipe.train_set()[0]
    assert recipe.parse(recipe.preview(example)).tokens == example.tokens
    by_token = load_recipe("causal-lm", options={"model": str(decoder), "unit": "token"})
    asked = by_token.parse({"text": "Cairo is now home"})
    assert by_token.tokenizer.decode([asked.label]) == "home"
    assert by_token.tokenizer.decode(asked.tokens["input_ids"]) == "[CLS] cairo is now"
    with pytest.raises(RecipeInputError, match="unknown field"):
        by_token.parse({"sentence1": "Cairo"})


def test_a_small_model_is_made_trained_and_cached_with_its_tied_embedding(data, tmp_path, monkeypatch):
    monkeypatch.setenv("NATTRIBUTE_CACHE", str(tmp_path))
    sources, losses = [], []
    for unit in ("sequence", "token"):  # the same model whatever a row of the index is
        recipe = load_recipe(
            "causal-lm", data_dir=data, options={**NEW, "epochs": 20, "learning_rate": 0.01, "unit": unit}
        )
        model = recipe.model()
        sources.append(recipe.model_source)
        assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
        documents = [recipe.documents[row] for row in range(len(PAIRS))]
        with torch.no_grad():
            losses.append([float(recipe.mean_loss(some, documents)) for some in (recipe.initial_model(), model)])
    assert sources == ["training", "cache"]
    assert losses[0] == losses[1]
    assert losses[0][1] < losses[0][0] - 2  # nats a token; at first every token is as likely as any other


def test_an_index_of_a_language_model_opens_with_what_a_service_needs(data, tmp_path):
    build_index(settings(data, "new", options=NEW, dim=32), tmp_path / "lm")
    index = open_index(tmp_path / "lm")
    assert index.manifest.measurement.name == "custom"
    assert index.manifest.recipe.options["columns"] == "sentence1,sentence2"
    assert index.examples.preview(1)[0] == "application/json"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "word"}, "must be sequence or token"),
        ({"model": "new"}, "with which tokenizer"),
        ({"model": "new", "tokenizer": "x", "epochs": 1, "width": 5}, "heads must divide"),
    ],
)
def test_options_that_cannot_be_are_refused(data, options, message):
    with pytest.raises(RecipeOptionError, match=message):
        load_recipe("causal-lm", data_dir=data, options=options)


def test_a_model_that_sees_what_comes_later_is_refused(data, tmp_path):
    encoder = save_model(tmp_path / "bert", "bert", "masked")
    with pytest.raises(RecipeOptionError, match="does not read from left to right"):
        prepare(settings(data, encoder))


@pytest.mark.parametrize("measurement", ["class_logit", "label_logit", "margin"])
def test_a_measurement_of_logits_is_refused_for_sequences_and_leaves_nothing(data, decoder, tmp_path, measurement):
    with pytest.raises(BuildSettingsError, match=f"--measurement {measurement} is of logits"):
        build_index(settings(data, decoder, measurement=measurement), tmp_path / "index")
    assert list(tmp_path.iterdir()) == []
