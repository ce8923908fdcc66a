"""A BERT in front of another network; it is tiny and random, nothing is downloaded."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

import corrkd
from corrkd.cli import ReadingOptions, SettingsOptions
from corrkd.data.convert import convert
from corrkd.data.dataset import TOKEN_SCALE, MultimodalDataset
from corrkd.data.inputs import Inputs
from corrkd.data.load import load_dataset
from corrkd.data.normalise import fit_normalisation
from corrkd.errors import CorrKDError
from corrkd.evaluation.explain import explain
from corrkd.evaluation.sweep import sweep
from corrkd.experiment.settings import load_settings
from corrkd.missing.conditions import condition, standard_conditions
from corrkd.networks.bert import BertNetwork, BertSettings, pretrained_bert
from corrkd.networks.draws import Draws, drawing_from, step_keys
from corrkd.networks.saved import SavedNetwork, load_network, save_network
from corrkd.serve.export import export
from corrkd.serve.predictor import Predictor
from corrkd.settings import EvaluationSettings
from tests.conftest import CLASSES, make_dataset, make_samples, map_tensors, overwrite_invisible

transformers = pytest.importorskip("transformers")

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(25))]
UNKNOWN = 1
SMALL = {"width": 8, "heads": 2, "feedforward": 16, "layers": 1, "classifier": [6], "dropout": 0.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny BERT and its vocabulary."""
    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    torch.manual_seed(3)
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def with_tokens(dataset: MultimodalDataset) -> MultimodalDataset:
    """Replace the language's features by token ids; each class has different words."""
    rng = np.random.default_rng(0)
    splits = {}
    for name, split in dataset.splits.items():
        present = split.present["language"]
        ids = 5 + 8 * split.labels[:, None] + rng.integers(0, 8, present.shape)
        splits[name] = replace(
            split,
            frames={**split.frames, "language": (ids * present)[..., None].astype(np.float32)},
        )
    return replace(dataset, splits=splits, tokens=("language",))


def settings(model: Path, trained: bool = False, **network: Any) -> BertSettings:
    encoder = {"model": str(model), "trained": trained, "dropout": 0.2}
    return BertSettings.model_validate(
        {"language_encoder": encoder, "network": {**SMALL, **network}}
    )


def network(model: Path, trained: bool = False) -> BertNetwork:
    torch.manual_seed(0)
    widths = {"language": 1, "audio": 3, "vision": 4}
    frames = dict.fromkeys(widths, 6)
    return BertNetwork(widths, frames, target=CLASSES, settings=settings(model, trained)).eval()


def saved(model: Path) -> SavedNetwork:
    dataset = with_tokens(make_dataset())
    normalisation = fit_normalisation(dataset.split("train"), tokens=dataset.tokens)
    return SavedNetwork(
        network=network(model),
        normalisation=normalisation,
        target=CLASSES,
        frames=dict.fromkeys(dataset.widths, 6),
    )


def inputs(count: int = 5) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    frames, exists, visible = {}, {}, {}
    for m, width in {"language": 1, "audio": 3, "vision": 4}.items():
        frames[m] = torch.randn(count, 6, width, generator=generator)
        exists[m] = torch.arange(6)[None] < torch.randint(1, 7, (count, 1), generator=generator)
        visible[m] = exists[m] & (torch.rand(count, 6, generator=generator) < 0.7)
        visible[m][0, 0] = True
    frames["language"] = torch.randint(5, 30, (count, 6, 1), generator=generator) / TOKEN_SCALE
    return Inputs(frames, exists, visible)


def test_words_are_read_by_the_model_and_missing_ones_as_unknown(model: Path) -> None:
    bert = network(model)
    data = inputs()
    reference = transformers.BertModel.from_pretrained(model).eval()
    embedded = bert.embed(data)
    frames, exists, visible = data.of("language")
    for row in range(5):
        length = int(exists[row].sum())
        ids = (frames[row, :length, 0] * TOKEN_SCALE).long()
        ids = torch.where(visible[row, :length], ids, UNKNOWN)
        expected = reference(input_ids=ids[None]).last_hidden_state[0]
        torch.testing.assert_close(
            embedded.frames["language"][row, :length], expected, atol=1e-5, rtol=1e-5
        )
    assert all(torch.equal(embedded.visible[m], data.visible[m]) for m in bert.modalities)
    torch.testing.assert_close(bert(data).logits, bert.inner(embedded).logits)


def test_invalid_ids_are_read_as_unknown(model: Path) -> None:
    bert = network(model)
    everything = torch.ones(1, 6, dtype=torch.bool)
    numbers = torch.tensor([[29.0, 30.0, -1.0, 2.5, 1e9, 0.0]]) / TOKEN_SCALE
    assert bert.token_ids(numbers, everything, everything).tolist() == [[29, 1, 1, 1, 1, 0]]


def test_padding_and_invisible_words_change_nothing_and_visible_ones_do(model: Path) -> None:
    bert = network(model)
    data = inputs()
    before = bert(data).logits
    assert torch.equal(before, bert(overwrite_invisible(data, torch.nan)).logits)
    longer = map_tensors(lambda x: pad(x, (0, 0, 0, 5) if x.ndim == 3 else (0, 5)), data)
    torch.testing.assert_close(bert(longer).logits, before, atol=1e-5, rtol=0)
    changed = torch.where(data.frames["language"] * TOKEN_SCALE == 7, 8.0, 7.0) / TOKEN_SCALE
    assert not torch.allclose(
        before[0], bert(data._replace(frames={**data.frames, "language": changed})).logits[0]
    )
    nothing = {m: torch.zeros_like(x) for m, x in data.visible.items()}
    assert bert(Inputs(data.frames, data.exists, nothing)).logits.isfinite().all()
    assert bert(Inputs(data.frames, nothing, nothing)).logits.isfinite().all()
    assert bert(map_tensors(lambda x: x[:0], data)).logits.shape == (0, 3)


def test_only_a_trained_model_gets_gradients(model: Path) -> None:
    data = inputs()
    for trained in (False, True):
        bert = network(model, trained).train()
        bert(data).logits.square().sum().backward()
        gradients = [p.grad is not None and bool(p.grad.any()) for p in bert.bert.parameters()]
        assert any(gradients) == trained
        assert bert.bert.training == trained
        assert all(p.grad is not None for p in bert.inner.parameters())


def test_dropout_depends_only_on_the_trainings_draws(model: Path) -> None:
    bert, data = network(model, trained=True).train(), inputs()

    def states(step: int, seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        with drawing_from(Draws(step_keys(0, 0, step))):
            return bert.embed(data).frames["language"]

    assert torch.equal(states(0, 1), states(0, 2))
    assert not torch.allclose(states(0, 1), states(1, 1))


def test_the_inner_network_is_initialised_as_if_alone(model: Path) -> None:
    bert = network(model)
    torch.manual_seed(0)
    alone = type(bert.inner)(
        {"language": 12, "audio": 3, "vision": 4},
        dict.fromkeys(("language", "audio", "vision"), 6),
        target=CLASSES,
        settings=bert.inner.settings,
    )
    for name, value in alone.state_dict().items():
        assert torch.equal(bert.inner.state_dict()[name], value)
    assert bert.parts == alone.parts
    assert bert.representation_width == alone.representation_width


def test_a_saved_model_does_not_need_berts_files(model: Path, tmp_path: Path) -> None:
    original = saved(model)
    save_network(tmp_path / "one", original)
    card = json.loads((tmp_path / "one.json").read_text())
    card["network"]["language_encoder"]["model"] = "/nowhere"
    del card["digest"]
    (tmp_path / "one.json").write_text(json.dumps(card))
    loaded = load_network(tmp_path / "one")
    assert torch.equal(loaded.network(inputs()).logits, original.network(inputs()).logits)
    assert not any(p.requires_grad for p in loaded.network.bert.parameters())


def test_a_card_that_asks_for_too_much_is_refused(model: Path, tmp_path: Path) -> None:
    save_network(tmp_path / "one", saved(model))
    card = json.loads((tmp_path / "one.json").read_text())
    del card["digest"]
    for key, value in (
        ("layers", 10**9),
        ("width", 10**9),
        ("heads", 5),
        ("vocabulary", 2**23),
        ("activation", "x"),
    ):
        tree = json.loads(json.dumps(card))
        tree["network"]["language_encoder"]["shape"][key] = value
        (tmp_path / "one.json").write_text(json.dumps(tree))
        with pytest.raises(CorrKDError) as error:
            load_network(tmp_path / "one")
        assert "\n" not in str(error.value)


def test_a_sweep_with_shared_encodings_matches_the_network(model: Path) -> None:
    samples = normalised_samples(with_tokens(make_dataset()))
    bert = network(model)
    assert bert.modality_wise
    evaluation = EvaluationSettings(conditions={"ratio": [0.4], "noise": [0.5]}, draws=1)
    conditions = standard_conditions(samples.modalities, evaluation, incomplete=np.array([False]))
    everything = samples.take(torch.arange(len(samples)))
    for result in sweep(bert, samples, conditions, mask_seed=5, batch_size=7):
        incomplete = result.condition.apply(everything, seed=5, draw=result.draw)
        with torch.no_grad():
            expected = torch.softmax(bert(incomplete).logits, -1).numpy()
        np.testing.assert_allclose(result.response, expected, atol=1e-5)


def normalised_samples(dataset: MultimodalDataset) -> Any:
    samples = make_samples(dataset, "test")
    normalisation = fit_normalisation(dataset.split("train"), tokens=dataset.tokens)
    return type(samples)(
        dataset.split("test"), samples.target, normalisation, device=torch.device("cpu")
    )


@pytest.mark.parametrize("method", ["robust", "standard", "scale", "none"])
def test_normalisation_keeps_ids_exact(method: Any) -> None:
    dataset = with_tokens(make_dataset())
    normalisation = fit_normalisation(dataset.split("train"), method, 1.0, tokens=dataset.tokens)
    ids = torch.arange(2**20, dtype=torch.float32)[:, None]
    assert torch.equal(normalisation.apply("language", ids.clone()) * TOKEN_SCALE, ids)


def test_the_predictor_takes_raw_ids(model: Path) -> None:
    original = saved(model)
    split = with_tokens(make_dataset()).split("test")
    predictor = Predictor(original)
    sample = {m: np.array(x[0, : split.lengths[m][0]]) for m, x in split.frames.items()}
    samples = normalised_samples(with_tokens(make_dataset()))
    complete = sweep(original.network, samples, [condition("complete", samples.modalities)])[0]
    prediction = predictor.predict(sample)
    np.testing.assert_allclose(
        list(prediction.probabilities.values()), complete.response[0], atol=1e-5
    )


@pytest.mark.slow
def test_export(model: Path, tmp_path: Path) -> None:
    dataset = with_tokens(make_dataset())
    assert (
        export(Predictor(saved(model)), tmp_path / "model", dataset=dataset, max_frames=16).largest
        < 1e-5
    )


def test_gradients_explain_no_ids(model: Path) -> None:
    with pytest.raises(CorrKDError, match="network 'bert' reads ids of tokens"):
        explain(
            network(model),
            inputs(1),
            target=CLASSES,
            lengths=dict.fromkeys(("language", "audio", "vision"), 6),
        )


# --------------------------------------------------------------------------------------------------
# what is refused


def test_features_are_refused_where_ids_are_needed(model: Path) -> None:
    with pytest.raises(
        CorrKDError, match=r"modality language has no token ids; read them with data.tokens"
    ):
        BertNetwork(
            {"language": 5, "audio": 3},
            {"language": 6, "audio": 6},
            target=CLASSES,
            settings=settings(model),
        )


def test_ids_are_refused_where_features_are_needed(tmp_path: Path) -> None:
    data = {"path": str(mmsa_file(tmp_path)), "tokens": True}
    with pytest.raises(
        CorrKDError,
        match="modality language holds ids of tokens, which network 'corrkd' would read as",
    ):
        corrkd.run({"data": data}, tmp_path / "run")


def test_the_inner_network_gets_the_mean_fill(model: Path) -> None:
    with_mean = settings(model, fill="mean")
    assert with_mean.fill == "mean"
    assert settings(model, fill="zeros").fill == "zeros"
    assert (
        BertSettings.model_validate({"language_encoder": {"model": "x"}, "network": "mlp"}).fill
        is None
    )
    widths = {"language": 1, "audio": 3}
    bert = BertNetwork(widths, dict.fromkeys(widths, 6), target=CLASSES, settings=with_mean)
    bert.set_fill({"language": torch.ones(1), "audio": torch.ones(3)})
    assert [encoder.fill.sum().item() for encoder in bert.inner.encoders] == [0.0, 3.0]


def test_more_words_than_positions_are_refused(model: Path) -> None:
    with pytest.raises(CorrKDError, match=r"samples of up to 17 tokens, but .* reads 16"):
        BertNetwork({"language": 1}, {"language": 17}, target=CLASSES, settings=settings(model))
    assert network(model).longest(dict.fromkeys(("language", "audio", "vision"), 6)) == {
        "language": 16
    }


def test_a_folder_without_a_bert_is_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(CorrKDError, match="cannot be read") as error:
        pretrained_bert(str(tmp_path))
    assert "\n" not in str(error.value)
    other = json.loads((model / "config.json").read_text()) | {"model_type": "roberta"}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(CorrKDError, match="a model of type roberta; only BERT is read"):
        pretrained_bert(str(tmp_path))


def test_without_transformers(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(
        CorrKDError, match=r"transformers is not installed; pip install 'corrkd\[hub\]'"
    ):
        pretrained_bert(str(model))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("bert", "language_encoder: field required"),
        (
            {"name": "bert", "language_encoder": {"model": "x"}, "network": "nope"},
            "unknown network 'nope'",
        ),
        ({"name": "bert", "language_encoder": {"model": "x"}, "network": {"widht": 8}}, "widht"),
        ({"name": "bert", "language_encoder": {"model": "x", "lr": 1}}, "lr"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(tree: Any, message: str) -> None:
    with pytest.raises(CorrKDError, match=message) as error:
        load_settings(teacher={"network": tree})
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------
# from file to report


def mmsa_file(folder: Path) -> Path:
    """Write MMSA's layout without `text`: [CLS], words that depend on the class, [SEP]."""
    rng = np.random.default_rng(0)
    data = {}
    for split, count in {"train": 48, "valid": 18, "test": 18}.items():
        classes = np.arange(count) % 3
        lengths = rng.integers(3, 7, count)
        mask = np.arange(6) < lengths[:, None]
        ids = 5 + 8 * classes[:, None] + rng.integers(0, 8, (count, 6))
        ids[:, 0] = 2
        ids[np.arange(count), lengths - 1] = 3
        data[split] = {
            "id": np.array([f"v{split}{row // 3}$_${row % 3}" for row in range(count)]),
            "text_bert": np.stack([ids * mask, mask, mask * 0], 1).astype(np.float32),
            "audio": rng.normal(size=(count, 9, 3)).astype(np.float32),
            "vision": rng.normal(size=(count, 8, 2)).astype(np.float32),
            "regression_labels": (classes - 1.0) * 2,
            "classification_labels": classes,
        }
    path = folder / "sims.pkl"
    path.write_bytes(pickle.dumps(data))
    return path


def test_ids_are_read_and_converted(tmp_path: Path) -> None:
    path = mmsa_file(tmp_path)
    with pytest.raises(CorrKDError, match=r"read the ids themselves \(--tokens\)"):
        load_dataset(path)
    dataset = load_dataset(path, tokens=True)
    source = pickle.loads(path.read_bytes())["test"]["text_bert"]
    convert(dataset, tmp_path / "converted.safetensors")
    for loaded in (dataset, load_dataset(tmp_path / "converted.safetensors")):
        assert loaded.tokens == ("language",)
        split = loaded.split("test")
        assert np.array_equal(split.frames["language"][..., 0], source[:, 0])
        assert np.array_equal(split.lengths["language"], source[:, 1].sum(1))
        assert np.array_equal(split.present["language"], source[:, 1] > 0)
    convert(make_dataset(), tmp_path / "without.safetensors")
    with pytest.raises(CorrKDError, match="has no token ids of BERT"):
        load_dataset(tmp_path / "without.safetensors", tokens=True)


@pytest.mark.parametrize(
    "change", [lambda x: x + 0.5, lambda x: -x, lambda x: x[:, :2], lambda x: x * 1e8]
)
def test_invalid_ids_are_refused(change: Any, tmp_path: Path) -> None:
    path = mmsa_file(tmp_path)
    data = pickle.loads(path.read_bytes())
    data["valid"]["text_bert"] = change(data["valid"]["text_bert"])
    path.write_bytes(pickle.dumps(data))
    with pytest.raises(CorrKDError, match=r"sims, valid: .*text_bert"):
        load_dataset(path, tokens=True)


def test_the_flag_overrides_the_settings_only_if_set() -> None:
    def tokens_of(flag: bool, **options: Any) -> bool:
        return (
            SettingsOptions(data="synthetic", **options)
            .load(ReadingOptions(tokens=flag))
            .data.tokens
        )

    assert tokens_of(True)
    assert not tokens_of(False)
    for flag in (False, True):
        assert tokens_of(flag, changes=["data.tokens=true"])


@pytest.mark.slow
def test_a_run_learns_from_words(model: Path, tmp_path: Path) -> None:
    teacher = {
        "name": "bert",
        "language_encoder": {"model": str(model), "trained": True},
        "network": {"name": "mlp", "width": 8},
    }
    run = corrkd.run(
        {
            "data": {"path": str(mmsa_file(tmp_path)), "tokens": True},
            "teacher": {"network": teacher, "epochs": 20, "lr": 0.01, "batch_size": 16},
            "student": {"method": "kl", "epochs": 20, "lr": 0.01, "batch_size": 16},
            "evaluation": {"conditions": {"ratio": [], "burst": []}, "draws": 1},
        },
        tmp_path / "run",
    )
    student = Predictor.from_pretrained(run.folder)
    words = {"language": np.array([[2], [22], [25], [23], [3]])}
    assert student.predict(words).label == student.saved.target.classes[2]
