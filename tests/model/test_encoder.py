import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from raycd.config import EncoderConfig
from raycd.errors import RaycdError, WeightsError
from raycd.model import encoder as encoders
from raycd.model.encoder import CONFIG, PREPROCESS, WEIGHTS, Encoder

MakeEncoder = Callable[[], Encoder]
TEXTS = ["is blue with long sleeves", "a photo of a red dress", ""]


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(
        0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.fixture
def saved(new_encoder: MakeEncoder, tmp_path: Path) -> Path:
    new_encoder().save(tmp_path / "encoder")
    return tmp_path / "encoder"


@torch.inference_mode()
def features(encoder: Encoder, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return encoder.encode_images(pixels), encoder.encode_tokens(encoder.tokenize(TEXTS))


def test_a_saved_encoder_gives_the_same_features_and_fingerprint(
    new_encoder: MakeEncoder, saved: Path, pixels: torch.Tensor
) -> None:
    before = new_encoder()
    after = encoders.load(EncoderConfig(pretrained=str(saved)))
    for one, other in zip(features(before, pixels), features(after, pixels), strict=True):
        assert torch.equal(one, other)
    assert before.fingerprint() == after.fingerprint()
    assert before.preprocess == after.preprocess
    assert not after.training


def test_weights_preprocessing_and_architecture_each_change_the_fingerprint(
    new_encoder: MakeEncoder,
) -> None:
    prints = {new_encoder().fingerprint()}
    assert prints == {new_encoder().fingerprint()}
    other = new_encoder()
    with torch.no_grad():
        other.clip.visual.attnpool.c_proj.bias[0] += 1e-3
    prints.add(other.fingerprint())
    other = new_encoder()
    other.preprocess = other.preprocess.with_target_pad(1.5)
    prints.add(other.fingerprint())
    other = new_encoder()
    other.preprocess = replace(other.preprocess, resize_mode="squash")
    prints.add(other.fingerprint())
    other = new_encoder()
    other.model_config = {**other.model_config, "quick_gelu": False}
    prints.add(other.fingerprint())
    assert len(prints) == 5


def test_features_are_float32_rows_of_the_embedding_size_and_not_normalised(
    new_encoder: MakeEncoder, pixels: torch.Tensor
) -> None:
    encoder = new_encoder()
    assert encoder.dim == 16
    for found, rows in zip(features(encoder, pixels), (4, 3), strict=True):
        assert found.shape == (rows, 16)
        assert found.dtype == torch.float32
        assert not torch.allclose(found.norm(dim=-1), torch.ones(rows), atol=0.05)


def test_convolutions_keep_their_channels_last(new_encoder: MakeEncoder, saved: Path) -> None:
    for encoder in (new_encoder(), encoders.load_saved(saved)):
        weight = encoder.clip.visual.conv2.weight
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()


def test_bare_safetensors_weights_fill_the_named_architecture(
    new_encoder: MakeEncoder, tiny_configs: str, saved: Path, pixels: torch.Tensor
) -> None:
    config = EncoderConfig(
        name="raycd-tiny", configs=tiny_configs, pretrained=str(saved / WEIGHTS), target_pad=1.5
    )
    loaded = encoders.load(config)
    assert torch.equal(features(loaded, pixels)[0], features(new_encoder(), pixels)[0])
    assert loaded.preprocess.target_pad == 1.5


def test_the_papers_architecture_is_resolved_with_288_pixels_and_640_dimensions() -> None:
    with torch.device("meta"):  # no memory
        encoder = encoders.create(EncoderConfig(name="RN50x4-quickgelu", pretrained=""))
    assert (encoder.dim, encoder.preprocess.size) == (640, (288, 288))
    assert encoder.device.type == "meta"
    assert sum(p.numel() for p in encoder.parameters()) == 178_300_601


# ---- mistakes


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(WeightsError, match=r"got: +RN50x4-quickgel\n.*RN50x4-quickgelu"):
        encoders.load(EncoderConfig(name="RN50x4-quickgel", pretrained="openai"))


def test_an_unknown_tag_names_the_tags_of_the_model() -> None:
    with pytest.raises(
        WeightsError, match=r"'nonsense' of RN50x4-quickgelu(.|\n)*a tag of this model \(openai\)"
    ):
        encoders.load(EncoderConfig(name="RN50x4-quickgelu", pretrained="nonsense"))


def test_no_weights_at_all_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"encoder\.pretrained is empty"):
        encoders.load(EncoderConfig(name="RN50x4-quickgelu", pretrained=""))


def test_a_model_without_tags_says_so(tiny_configs: str) -> None:
    with pytest.raises(WeightsError, match="it has none"):
        encoders.load(EncoderConfig(name="raycd-tiny", configs=tiny_configs, pretrained="openai"))


@pytest.mark.parametrize("name", ["weights.pt", "weights.bin"])
@pytest.mark.parametrize("there", [True, False])
def test_a_pickle_is_refused_unread(
    name: str, there: bool, tmp_path: Path, tiny_configs: str
) -> None:
    if there:
        torch.save({"weight": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(WeightsError, match="safetensors"):
        encoders.load(
            EncoderConfig(name="raycd-tiny", configs=tiny_configs, pretrained=str(tmp_path / name))
        )


@pytest.mark.parametrize("damage", ["absent", "empty", "text", "truncated", "other model"])
def test_weights_that_cannot_be_read_are_a_weights_error(
    damage: str, saved: Path, tiny_configs: str
) -> None:
    path = saved / WEIGHTS
    whole = path.read_bytes()
    if damage == "absent":
        path.unlink()
    elif damage == "other model":
        weights = load_file(path)
        save_file({**weights, "text_projection": torch.zeros(16, 8)}, path)
    else:
        path.write_bytes(
            {"empty": b"", "text": b"not weights", "truncated": whole[: len(whole) // 2]}[damage]
        )
    for pretrained in (path, saved):
        with pytest.raises(
            WeightsError, match=r"open_clip_model\.safetensors cannot be read or do not fit"
        ):
            encoders.load(
                EncoderConfig(name="raycd-tiny", configs=tiny_configs, pretrained=str(pretrained))
            )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (CONFIG, None),
        *product(
            [CONFIG, PREPROCESS],
            ["{", "[]", "{}", '{"model_cfg": {"embed_dim": 16}}', '{"model_cfg": 5}'],
        ),
    ],
)
def test_a_folder_that_is_no_whole_encoder_is_a_users_error(
    name: str, content: str | None, saved: Path
) -> None:
    if content is None:
        (saved / name).unlink()
    else:
        (saved / name).write_text(content)
    with pytest.raises(RaycdError, match=r"holds no encoder|preprocess"):
        encoders.load_saved(saved)


def test_weights_of_another_width_of_texts_are_a_weights_error(
    saved: Path, tmp_path: Path, tiny_configs: str
) -> None:
    config = json.loads((Path(tiny_configs) / "raycd-tiny.json").read_text())
    config["text_cfg"] |= {"width": 2 * config["text_cfg"]["width"]}
    (tmp_path / "wide.json").write_text(json.dumps(config))
    wide = EncoderConfig(name="wide", configs=str(tmp_path), pretrained=str(saved / WEIGHTS))
    with pytest.raises(WeightsError, match=r"do not fit(.|\n)*encoder\.name is the architecture"):
        encoders.load(wide)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"a file of encoder\.configs cannot be read"),
        (
            '{"embed_dim": 8, "vision_cfg": {"layers": 1}, "text_cfg": {"hf_model": "x"}}',
            r"the encoder broken cannot be built\n.*hf_model",
        ),
    ],
)
def test_a_configuration_that_open_clip_cannot_build_is_a_weights_error(
    content: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "broken.json"
    file.write_text(content)
    with pytest.raises(WeightsError, match=message):
        encoders.create(EncoderConfig(name="broken", pretrained="", configs=str(tmp_path)))
    file.unlink()  # open_clip reads all folders that it was ever told


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "model.pt"])
def test_a_folder_whose_weights_are_a_pickle_is_refused_with_what_to_do(
    name: str, saved: Path
) -> None:
    (saved / WEIGHTS).rename(saved / name)
    (saved / PREPROCESS).unlink()  # as the hub has it
    with pytest.raises(WeightsError, match=rf"{name} is not a safetensors file(.|\n)*convert it"):
        encoders.load_saved(saved)


def test_an_empty_preprocessing_is_told_apart_from_an_absent_one(saved: Path) -> None:
    described = json.loads((saved / CONFIG).read_text())
    (saved / PREPROCESS).unlink()
    (saved / CONFIG).write_text(json.dumps(described | {"preprocess_cfg": {}}))
    with pytest.raises(WeightsError, match=r"where its preprocess_cfg is empty, leave that out"):
        encoders.load_saved(saved)
    del described["preprocess_cfg"]
    (saved / CONFIG).write_text(json.dumps(described))
    encoders.load_saved(saved)


def test_configs_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"encoder\.configs"):
        encoders.create(EncoderConfig(name="RN50", pretrained="", configs=str(tmp_path / "absent")))


def test_a_folder_of_configs_adds_its_models(tmp_path: Path, tiny_configs: str) -> None:
    config = json.loads((Path(tiny_configs) / "raycd-tiny.json").read_text())
    (tmp_path / "my-own.json").write_text(json.dumps({**config, "embed_dim": 8}))
    assert (
        encoders.create(EncoderConfig(name="my-own", pretrained="", configs=str(tmp_path))).dim == 8
    )


# ---- training


@pytest.mark.parametrize(
    ("finetune", "image", "text"),
    [("text", False, True), ("image", True, False), ("both", True, True), ("none", False, False)],
)
def test_finetune_chooses_which_parameters_train(
    new_encoder: MakeEncoder, finetune: encoders.Finetune, image: bool, text: bool
) -> None:
    encoder = new_encoder()
    encoder.trainable("both" if finetune == "none" else "none")
    encoder.trainable(finetune)
    parameters = dict(encoder.clip.named_parameters())
    assert not parameters.pop("logit_scale").requires_grad
    of_images = {name for name in parameters if name.startswith("visual.")}
    of_texts = {
        name
        for name in parameters
        if name.startswith("transformer.")
        or name
        in ("token_embedding.weight", "positional_embedding", "ln_final.weight", "ln_final.bias")
        or name == "text_projection"
    }
    assert of_images | of_texts == parameters.keys()
    assert {name for name in of_images if parameters[name].requires_grad} == (
        of_images if image else set()
    )
    assert {name for name in of_texts if parameters[name].requires_grad} == (
        of_texts if text else set()
    )


def gradients(encoder: Encoder, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    text = encoder.encode_tokens(encoder.tokenize(TEXTS))
    loss = encoder.encode_images(pixels).square().sum() + text.square().sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
    return {name: p.grad for name, p in encoder.clip.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_gives_the_same_gradient(
    new_encoder: MakeEncoder, pixels: torch.Tensor
) -> None:
    plain, saving = new_encoder(), new_encoder()
    plain.trainable("both")
    saving.trainable("both", grad_checkpointing=True)
    expected, found = gradients(plain, pixels), gradients(saving, pixels)
    assert expected.keys() == found.keys()
    assert len(expected) == len(list(plain.clip.named_parameters())) - 1  # all but the logit scale
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


def saved_activations(encoder: Encoder, run: Callable[[], torch.Tensor]) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, weights excepted."""
    weights = {parameter.data_ptr() for parameter in encoder.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


@pytest.mark.parametrize("side", ["image", "text"])
def test_gradient_checkpointing_keeps_fewer_activations(
    new_encoder: MakeEncoder, pixels: torch.Tensor, side: str
) -> None:
    kept = []
    for checkpointing in (False, True):
        encoder = new_encoder()
        encoder.trainable("both", grad_checkpointing=checkpointing)
        tokens = encoder.tokenize(TEXTS)
        if side == "image":
            forward = partial(encoder.encode_images, pixels)
        else:
            forward = partial(encoder.encode_tokens, tokens)
        kept.append(saved_activations(encoder, forward))
    assert kept[1] < 0.7 * kept[0]


def test_bf16_comes_close_to_fp32(new_encoder: MakeEncoder, pixels: torch.Tensor) -> None:
    encoder = new_encoder()
    exact = features(encoder, pixels)
    encoder.precision = "bf16"
    for one, other in zip(exact, features(encoder, pixels), strict=True):
        assert other.dtype == torch.float32
        assert not torch.equal(one, other)
        assert torch.cosine_similarity(one, other).min() > 0.999
    assert next(encoder.parameters()).dtype == torch.float32


# ---- texts


def test_long_texts_are_cut_to_the_context_length(new_encoder: MakeEncoder) -> None:
    encoder = new_encoder()
    tokens = encoder.tokenize(["red " * 14, "red " * 15, ""])
    assert tokens.shape == (3, 16)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens[0], tokens[1])
    assert tokens[2].count_nonzero() == 2  # begin and end
    assert [encoder.truncates(text) for text in ("red " * 14, "red " * 15, "")] == [
        False,
        True,
        False,
    ]


def test_of_several_weights_in_a_saved_folder_its_own_are_loaded(
    new_encoder: MakeEncoder, saved: Path
) -> None:
    before = encoders.load_saved(saved).fingerprint()
    other = new_encoder()
    with torch.no_grad():
        other.clip.text_projection += 1
    other.save(saved.parent / "other")
    (saved.parent / "other" / WEIGHTS).rename(saved / "open_clip_best.safetensors")
    assert encoders.load_saved(saved).fingerprint() == before


@pytest.mark.usefixtures("impatient_hub")
def test_a_model_of_the_hub_that_cannot_be_had_is_told_without_advice_on_tags() -> None:
    config = EncoderConfig(name="hf-hub:nobody/nothing", pretrained="/data/x.safetensors")
    with pytest.raises(WeightsError, match=r"hf-hub:nobody/nothing(.|\n)*local-dir:FOLDER") as told:
        encoders.load(config)
    assert "encoder.pretrained" not in str(told.value)
