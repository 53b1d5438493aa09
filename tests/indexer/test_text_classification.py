"""The recipe text-classification: labels, options, gradients of each example alone, fine-tuning, requests."""

import json
import math

import pytest
import safetensors.torch
import torch
import transformers

from indexer.build_settings import BuildSettings
from indexer.check import check_recipe
from indexer.layers import taps
from indexer.preparation import Prepared, prepare
from indexer.recipe import RecipeDataError, RecipeError, RecipeInputError, RecipeOptionError
from indexer.recipe_file import load_recipe
from indexer.recipes import text_tables
from indexer.recipes.attention import takes_prepared_masks
from indexer.recipes.text_tables import TextTable
from indexer.training import seeded, state_digest
from tests.indexer.text_models import MINILM, PAIRS, save_model, write_pairs

NAMES = {"id2label": {0: "entailment", 1: "not_entailment"}, "label2id": {"entailment": 0, "not_entailment": 1}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), source="RTE", index=7)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    classifiers = {
        kind: save_model(root / kind, kind, "classifier", **NAMES) for kind in ("bert", "distilbert", "gpt2")
    }
    classifiers["deberta-v2"] = save_model(root / "deberta", "deberta-v2", "classifier", **NAMES)
    return {**classifiers, "encoder": save_model(root / "encoder", "bert", "encoder")}


def settings(data, model, **changes):
    options = {"model": str(model), **changes.pop("options", {})}
    chosen = {"sketch": "sjlt", "dim": 64, "threads": 1, **changes}
    return BuildSettings(recipe="text-classification", data_dir=data, options=options, **chosen)


def features(prepared: Prepared, row: int) -> torch.Tensor:
    """Tangent features of a row among all others, which are longer and shorter."""
    rows = prepared.train.collate(0, prepared.train.num_rows)
    found = torch.zeros(prepared.parameters.num_parameters)
    for slab in prepared.featuriser.slabs(rows.examples, rows.labels, prepared.views[0]):
        found[slab.offset : slab.offset + slab.gradients.shape[1]] = slab.gradients[row]
    return found


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2", "deberta-v2"])
def test_check_proves_that_examples_do_not_see_their_batch_mates(data, models, kind):
    findings = check_recipe(settings(data, models[kind]))
    assert [finding for finding in findings if not finding.ok] == []
    assert len(findings) == 8
    # With masks that the model takes as they are, vmap works for encoders too; DeBERTa has a mask logic of its own.
    assert "each example takes its own backward" not in findings[-1].detail


@pytest.mark.parametrize("measurement", ["label_logit", "margin"])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_features_in_a_padded_batch_are_float64_gradients_of_the_text_alone(data, models, kind, measurement):
    prepared = prepare(settings(data, models[kind], measurement=measurement))
    model = prepared.recipe.architecture()
    model.load_state_dict(prepared.model.state_dict())
    model.double().requires_grad_(True)
    for row in (1, 3):
        example = prepared.train.example(row)
        tokens = {name: torch.tensor([ids]) for name, ids in example.tokens.items()}  # no padding and no mask
        logits = model(**tokens).logits[0]
        other = 1 - example.label  # log p/(1-p) of two classes is the difference of their logits
        value = logits[example.label] - (logits[other] if measurement == "margin" else 0)
        named = dict(model.named_parameters())
        chosen = [named[parameter.name] for parameter in prepared.parameters]
        gradients = torch.autograd.grad(value, chosen, allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, chosen, strict=True)]
        expected = torch.cat([part.flatten() for part in flat])
        error = (features(prepared, row) - expected).norm() / expected.norm()
        assert error < 1e-5  # float32 rounding through two layers


def test_linear_layers_are_the_default_and_all_can_be_had(data, models):
    linear = [parameter.name for parameter in prepare(settings(data, models["gpt2"])).parameters]
    assert "transformer.h.0.attn.c_attn.weight" in linear  # transformers' Conv1D is a linear layer
    assert "score.weight" in linear
    assert not any("wte" in name or "ln_" in name for name in linear)
    everything = prepare(settings(data, models["gpt2"], layers="all"))
    assert any("wte" in parameter.name for parameter in everything.parameters)
    assert everything.ntk_gain is None


def test_what_is_found_in_the_data_and_the_model_stands_in_the_options(data, models):
    recipe = prepare(settings(data, models["bert"])).recipe
    assert recipe.options["columns"] == "sentence1,sentence2"
    assert recipe.options["labels"] == "entailment,not_entailment"
    example = recipe.train_set()[1]
    assert (recipe.label(example), recipe.label_names[0]) == (0, "entailment")
    assert recipe.metadata(example) == {"source": "RTE", "index": 7, "label_name": "entailment"}
    assert recipe.preview(example) == {"sentence1": PAIRS[1][0], "sentence2": PAIRS[1][1]}
    assert recipe.length(example) == len(example.tokens["input_ids"]) < recipe.length(recipe.train_set()[2])
    # A service has the index's options and no data: it parses what the index shows, and builds the architecture.
    alone = load_recipe("text-classification", options=dict(recipe.options))
    parsed = alone.parse(recipe.preview(example))
    assert parsed.tokens == example.tokens
    assert alone.label(parsed) == -1
    assert alone.architecture().state_dict().keys() == recipe.model().state_dict().keys()


@pytest.mark.parametrize(
    ("content", "pointer", "message"),
    [
        ({"sentence1": "a"}, "", "'sentence2' is missing"),
        ({"sentence1": "a", "sentence2": 3}, "/sentence2", "expected text, got int"),
        ({"sentence1": "a", "sentence2": " "}, "/sentence2", "empty"),
        ({"sentence1": "a", "sentence2": "b", "label": 1}, "/label", "unknown field"),
    ],
)
def test_content_that_is_no_such_text_is_refused(data, models, content, pointer, message):
    recipe = load_recipe(
        "text-classification", options={"model": str(models["bert"]), "columns": "sentence1,sentence2"}
    )
    with pytest.raises(RecipeInputError, match=message) as caught:
        recipe.parse(content)
    assert caught.value.pointer == pointer
    assert '"sentence2"' in caught.value.allowed


def labels_of(folder, rows, model, **options):
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": "words", "label": row}) + "\n" for row in rows))
    recipe = load_recipe("text-classification", data_dir=folder, options={"model": str(model), **options})
    return recipe, [recipe.train_set()[row].label for row in range(len(rows))]


def test_labels_are_names_or_numbers_in_an_order_that_is_known(tmp_path, models):
    new = {"epochs": 1}
    recipe, labels = labels_of(tmp_path / "a", ["spam", "ham", "spam", None], models["encoder"], **new)
    assert (recipe.label_names, labels) == (("ham", "spam"), [1, 0, 1, -1])
    recipe, labels = labels_of(tmp_path / "b", ["spam", "ham"], models["encoder"], labels="spam,ham", **new)
    assert (recipe.label_names, labels) == (("spam", "ham"), [0, 1])
    recipe, labels = labels_of(tmp_path / "c", [2, 0, -1], models["encoder"], **new)
    assert (recipe.label_names, labels) == (("0", "1", "2"), [2, 0, -1])
    recipe, labels = labels_of(tmp_path / "h", ["1", "0", "-1"], models["encoder"], **new)  # as a table of text says it
    assert (recipe.label_names, labels) == (("0", "1"), [1, 0, -1])
    recipe, labels = labels_of(tmp_path / "d", [1, 0], models["bert"])
    assert (recipe.label_names, labels) == (("entailment", "not_entailment"), [1, 0])
    recipe, labels = labels_of(tmp_path / "e", ["a, b", "c"], models["encoder"], **new)
    assert recipe.label_names == ("a, b", "c")
    again = load_recipe("text-classification", options=dict(recipe.options))
    assert again.label_names == recipe.label_names
    with pytest.raises(RecipeDataError, match="'spam' in row 0, none of entailment, not_entailment"):
        labels_of(tmp_path / "f", ["spam"], models["bert"])
    with pytest.raises(RecipeOptionError, match="names 3 labels, the model has 2"):
        labels_of(tmp_path / "g", ["a"], models["bert"], labels="a,b,c")


def saved_by_datasets(folder, monkeypatch, names, numbers):
    """A folder of rows whose labels are numbers of a ClassLabel."""
    rows = [{"text": f"words {row}", "label": number} for row, number in enumerate(numbers)]
    table = TextTable(folder, ("text", "label"), rows, {"label": tuple(names)})
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "state.json").write_text("{}")
    monkeypatch.setattr(text_tables, "_read_datasets_folder", lambda path: table)
    return folder


def test_numbers_of_a_class_label_are_its_names(tmp_path, models, monkeypatch):
    # Names that look like numbers, and a model that has the names in another order.
    data = saved_by_datasets(tmp_path / "a", monkeypatch, ("1", "2", "3"), [0, 1, 2, -1])
    recipe = load_recipe(
        "text-classification", data_dir=data, options={"model": str(models["encoder"]), "epochs": 1, "query": "none"}
    )
    assert recipe.label_names == ("1", "2", "3")
    assert [recipe.train_set()[row].label for row in range(4)] == [0, 1, 2, -1]
    for place, names in (("b", ("not_entailment", "entailment")), ("c", ("Not_Entailment", "ENTAILMENT"))):
        data = saved_by_datasets(tmp_path / place, monkeypatch, names, [0, 1])
        recipe = load_recipe("text-classification", data_dir=data, options={"model": str(models["bert"])})
        found = [recipe.train_set()[row] for row in range(2)]
        assert [example.label for example in found] == [1, 0]
        assert [example.columns["label_name"] for example in found] == ["not_entailment", "entailment"]
    data = saved_by_datasets(tmp_path / "d", monkeypatch, ("no", "yes"), [0, 1])  # none of them is the model's
    recipe = load_recipe("text-classification", data_dir=data, options={"model": str(models["bert"])})
    assert [recipe.train_set()[row].label for row in range(2)] == [0, 1]
    data = saved_by_datasets(tmp_path / "e", monkeypatch, ("entailment", "neutral"), [1])
    recipe = load_recipe("text-classification", data_dir=data, options={"model": str(models["bert"])})
    with pytest.raises(RecipeDataError, match="only some are the same, so it cannot be told what 1 in row 0 is"):
        recipe.train_set()[0]


def without_weights(folder, kind, head, prefixes, **changes):
    """A saved model whose file lacks some weights."""
    save_model(folder, kind, head, **changes)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith(prefixes)}
    assert len(kept) < len(weights)
    safetensors.torch.save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_weights_that_a_model_lacks_are_not_drawn_at_random_without_a_word(data, tmp_path):
    model = without_weights(tmp_path / "bert", "bert", "classifier", ("bert.encoder.layer.1", "classifier"), **NAMES)
    with pytest.raises(RecipeOptionError, match=r"has no weights for bert\.encoder\.layer\.1.* and \d+ more"):
        prepare(settings(data, model))
    prepare(settings(data, model, options={"epochs": 1}))  # they are trained


def test_a_window_that_shows_in_longer_texts_only_keeps_the_models_own_masks():
    config = transformers.ModernBertConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        local_attention=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    )
    with seeded(0):
        model = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    assert takes_prepared_masks(model, 8)  # the window is 8 to either side
    assert not takes_prepared_masks(model, 48)
    assert not takes_prepared_masks(model, 2000)  # longer than what is tried: the configuration says so


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--option model="),
        ({"model": "ENCODER"}, "without a classification head"),
        ({"model": "package:no_such_package/model"}, "no Python package 'no_such_package'"),
        ({"model": "package:json/model"}, "the package has no folder 'model'"),
        ({"model": "./nowhere"}, "no such folder"),
        ({"model": "BERT", "columns": "premise"}, "no column 'premise'; it has sentence1, sentence2, label"),
        ({"model": "BERT", "train": "training"}, "no table 'training'"),
        ({"model": "BERT", "query": "final"}, "no table 'final'"),
        ({"model": "BERT", "max_length": 1}, "must be at least 2"),
        ({"model": "BERT", "learning_rate": 0}, "0.0 must be greater than 0 and less than 1"),
        ({"model": "BERT", "labels": "[a"}, r"'\[a' is no list of names"),
        ({"model": "BERT", "columns": "[sentence1"}, "what begins with \\[ is a JSON list"),
        ({"model": "BERT", "lora_rank": 4}, "must be trained"),
        ({"model": "BERT", "lora_rank": 4, "adapter": "x", "epochs": 1}, "give one"),
        ({"model": "BERT", "adapter": "nowhere"}, r"no adapter_config\.json"),
        ({"model": "BERT", "matching_epochs": 1}, "warm-up before fine-tuning"),
    ],
)
def test_options_that_cannot_be_are_refused(data, models, options, message):
    places = {"ENCODER": str(models["encoder"]), "BERT": str(models["bert"])}
    given = {key: places.get(str(value), value) for key, value in options.items()}
    with pytest.raises(RecipeError, match=message):
        prepare(BuildSettings(recipe="text-classification", data_dir=data, options=given, sketch="sjlt", dim=64))


def test_texts_are_as_long_as_the_model_reads_where_nothing_is_said(data, models):
    lengths = {}
    for kind in ("bert", "gpt2"):
        recipe = prepare(settings(data, models[kind])).recipe
        lengths[kind] = (recipe.options["max_length"], recipe.tokenizer.max_length)
    assert lengths == {"bert": (128, 128), "gpt2": (64, 64)}  # which has 64 positions; the manifest states the options


def test_a_length_that_the_model_cannot_read_is_refused_with_the_one_that_it_can(data, models, tmp_path):
    with pytest.raises(RecipeOptionError, match=r"reads texts of 64 tokens at most, not of 65: .*max_length=64"):
        prepare(settings(data, models["gpt2"], options={"max_length": 65}))
    # RoBERTa's kind has two positions more than a text may have tokens.
    roberta = save_model(tmp_path / "roberta", "roberta", "classifier", max_position_embeddings=40, **NAMES)
    for given in (0, 39, 512):
        with pytest.raises(RecipeOptionError, match="reads texts of 38 tokens at most"):
            prepare(settings(data, roberta, options={"max_length": given}))
    assert prepare(settings(data, roberta, options={"max_length": 38})).recipe.max_length == 38


def test_a_length_that_leaves_nothing_of_a_pair_is_refused(data, models):
    with pytest.raises(RecipeOptionError, match=r"leaves nothing of sentence1 and sentence2: 3 tokens .* at least 5"):
        prepare(settings(data, models["bert"], options={"max_length": 4}))
    assert prepare(settings(data, models["bert"], options={"max_length": 5})).recipe.max_length == 5


def test_a_service_never_downloads_what_an_index_names():
    # Without a data folder nothing is trained or indexed, so only what is on this machine is loaded.
    options = {"model": "nobody/has-this-model", "columns": "text", "labels": "a,b", "epochs": 1}
    recipe = load_recipe("text-classification", options=options)
    for load in (recipe.architecture, lambda: recipe.parse({"text": "words"})):
        with pytest.raises(RecipeError, match="local Hugging Face cache"):
            load()


def test_pickled_weights_are_refused(data, models, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    for path in models["bert"].iterdir():
        if path.suffix == ".safetensors":
            torch.save({}, folder / "pytorch_model.bin")
        else:
            (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(RecipeError, match="safetensors"):
        prepare(settings(data, folder))


def test_fine_tuning_gives_the_same_bits_again_and_is_cached(data, models, tmp_path, monkeypatch):
    options = {"model": str(models["encoder"]), "epochs": 2, "batch_size": 2, "learning_rate": 1e-3}
    options["matching_epochs"] = 1

    def trained(cache, **changes):
        monkeypatch.setenv("NATTRIBUTE_CACHE", str(tmp_path / cache))
        recipe = load_recipe("text-classification", data_dir=data, options={**options, **changes})
        model = recipe.model()
        assert all(parameter.requires_grad for parameter in model.parameters())  # embeddings too, once it is trained
        return recipe.model_source, state_digest(model.state_dict()), model

    first = trained("one")
    assert first[0] == "training"
    assert trained("two")[:2] == first[:2]
    assert trained("one")[:2] == ("cache", first[1])
    assert trained("one", seed=1)[1] != first[1]
    assert trained("one", matching_epochs=0)[1] != first[1]
    untrained = load_recipe("text-classification", data_dir=data, options=options).initial_model()
    moved = [name for name, value in untrained.state_dict().items() if not value.equal(first[2].state_dict()[name])]
    assert "classifier.weight" in moved
    assert not any("word_embeddings" in name for name in moved)


@pytest.mark.parametrize("unlabelled", ["some", "all"])
def test_rows_without_a_label_do_not_end_fine_tuning_unless_none_has_one(tmp_path, models, monkeypatch, unlabelled):
    monkeypatch.setenv("NATTRIBUTE_CACHE", str(tmp_path / "cache"))
    rows = [{"text": first, "label": label} for first, _, label in PAIRS]
    for row in rows if unlabelled == "all" else rows[2:]:
        row["label"] = None
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # One row a batch: most batches have no label at all.
    options = {"model": str(models["encoder"]), "epochs": 1, "batch_size": 1, "labels": "entailment,not_entailment"}
    recipe = load_recipe("text-classification", data_dir=tmp_path, options=options)
    if unlabelled == "all":
        with pytest.raises(RecipeDataError, match=r"train\.jsonl: no row has a label, and fine-tuning needs some"):
            recipe.model()
        return
    losses = [step.loss for step in recipe.fine_tuning_steps()]
    assert losses.count(0.0) == 4
    assert all(math.isfinite(loss) for loss in losses)
    before = recipe.initial_model().state_dict()
    after = recipe.model().state_dict()
    assert not after["classifier.weight"].equal(before["classifier.weight"])
    assert all(bool(torch.isfinite(value).all()) for value in after.values())


def test_a_row_without_an_id_is_refused(tmp_path, models):
    rows = [{"text": "a", "label": "entailment", "key": "k"}, {"text": "b", "label": "not_entailment", "key": None}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"model": str(models["bert"]), "id": "key"}
    rows = load_recipe("text-classification", data_dir=tmp_path, options=options).train_set()
    assert rows[0].name == "k"
    with pytest.raises(RecipeDataError, match="column 'key' is null in row 1; every row needs an id"):
        rows[1]


def test_steps_of_an_epoch_can_be_timed_one_by_one(data, models):
    options = {"model": str(models["encoder"]), "epochs": 1, "batch_size": 4}
    steps = list(load_recipe("text-classification", data_dir=data, options=options).fine_tuning_steps())
    assert [step.num_examples for step in steps] in ([4, 2], [2, 4])
    assert {step.num_steps for step in steps} == {2}


def test_representations_are_what_the_head_reads(data, models):
    recipe = load_recipe("text-classification", data_dir=data, options={"model": str(models["bert"])})
    model = recipe.model()
    inputs, _ = recipe.collate([recipe.train_set()[row] for row in range(3)])
    features = recipe.representation(model, inputs)
    assert features.shape == (3, 16)
    torch.testing.assert_close(model.classifier(features), recipe.call(model, inputs).logits)


def test_the_packaged_minilm_is_found_without_importing_its_package(data):
    options = {"model": MINILM, "epochs": 1}
    recipe = load_recipe("text-classification", data_dir=data, options=options)
    assert sum(parameter.numel() for parameter in recipe.initial_model().parameters()) == 22_713_986
    assert recipe.tokenizer.pad_id == 0


@pytest.mark.parametrize("sketch", ["sjlt", "kronecker"])
@pytest.mark.parametrize("kind", ["bert", "distilbert", "deberta-v2"])
def test_encoders_need_no_second_backward_pass(data, models, kind, sketch, monkeypatch):
    weighed = []
    monkeypatch.setattr(taps, "WeighedCall", lambda entry, _: weighed.append(entry.name))
    prepared = prepare(settings(data, models[kind], sketch=sketch, dim=256))
    rows = prepared.train.collate(0, prepared.train.num_rows)
    prepared.featuriser.sketch(rows.examples, rows.labels, prepared.views[0])
    assert weighed == []


def test_a_model_keeps_the_padding_token_that_its_positions_follow_from(data, tmp_path):
    # RoBERTa's positions are counted from its own padding token, 1; the tokenizer here fills with 0.
    folder = save_model(tmp_path / "roberta", "roberta", "classifier", **NAMES)
    recipe = load_recipe("text-classification", data_dir=data, options={"model": str(folder)})
    model = recipe.model()
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert saved.config.pad_token_id == recipe.pad_id == 1 != recipe.tokenizer.pad_id
    inputs, _ = recipe.collate([recipe.train_set()[row] for row in range(3)])
    with torch.no_grad():
        torch.testing.assert_close(recipe.call(model, inputs).logits, saved(**inputs).logits)
        for row in range(3):
            alone, _ = recipe.collate([recipe.train_set()[row]])
            # float32 sums over other lengths
            torch.testing.assert_close(saved(**alone).logits[0], saved(**inputs).logits[row], rtol=1e-4, atol=1e-5)
