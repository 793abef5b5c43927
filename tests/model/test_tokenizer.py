"""Hugging Face tokenizers: kept with the encoder, used from any thread, told where they cut."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from raycd.errors import WeightsError
from raycd.model import tokenizer
from raycd.model.encoder import CONFIG, WEIGHTS, Encoder, load_saved
from raycd.model.tokenizer import Tokenizer
from tests.families import CORPUS, JAPANESE, families, new, write_tokenizer

UNKNOWN = 3
BLOCKER = """
    import sys

    class NotInstalled:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("transformers", "sentencepiece", "tokenizers"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, NotInstalled())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a trained tokenizer."""
    made = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(made)
    return made


def config(name: object, **changes: Any) -> dict[str, Any]:
    text = {"hf_tokenizer_name": str(name), "context_length": 16} | changes
    return {"text_cfg": text}


@pytest.fixture(scope="module")
def words(folder: Path) -> Tokenizer:
    return tokenizer.create(config(folder))


def test_what_is_remembered_of_words_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tokenizer.create({"text_cfg": {"context_length": 16}})
    monkeypatch.setattr(tokenizer, "_KEPT", 10_000)
    first = plain(["is red"])
    for number in range(50):
        text = f"{number}" + chr(0x20000 + number) * 999
        plain([text])
        assert plain.truncates(text)
        assert sum(map(len, plain._inner.cache)) < 4 * 2 * 10_000  # a word is kept as its bytes
    assert torch.equal(plain(["is red"]), first)


@pytest.fixture
def saved(folder: Path, tmp_path: Path) -> Path:
    """Return a saved encoder whose tokenizer came from a folder that is no longer there."""
    origin = tmp_path / "hub"
    shutil.copytree(folder, origin)
    new(families(origin)["SigLIP2"], tmp_path).save(tmp_path / "encoder")
    shutil.rmtree(origin)
    return tmp_path / "encoder"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_saved_encoder_has_its_tokenizer_and_asks_no_network(
    saved: Path, words: Tokenizer, no_network: None
) -> None:
    loaded = load_saved(saved)
    assert torch.equal(
        loaded.tokenize(CORPUS), tokenizer.create(loaded.model_config, folder=saved)(CORPUS)
    )
    assert {"tokenizer.json", "tokenizer_config.json"} <= loaded.tokenizer.files.keys()
    assert {WEIGHTS, CONFIG}.isdisjoint(loaded.tokenizer.files)


def test_japanese_is_tokenised_without_unknowns_and_can_be_read_back(words: Tokenizer) -> None:
    texts = [JAPANESE, "羊毛の帽子", "größer und 緑", "👗"]
    tokens = words(texts)
    assert (tokens != UNKNOWN).all()
    inner = words._inner.tokenizer
    assert [inner.decode(row, skip_special_tokens=True).strip() for row in tokens[:1]] == texts[:1]
    assert len({tuple(row.tolist()) for row in tokens}) == len(texts)


def test_truncation_is_told_exactly_at_the_limit(words: Tokenizer) -> None:
    for text in ("red " * count for count in range(1, 40)):
        cut = words._inner.tokenizer(words._inner.clean_fn(text), verbose=False).input_ids
        assert words.truncates(text) == (len(cut) > 16)
    assert [words.truncates(text) for text in ("", "a red dress", "red " * 40)] == [
        False,
        False,
        True,
    ]


def test_a_separator_that_is_stripped_does_not_hide_a_cut(folder: Path) -> None:
    words = tokenizer.create(config(folder, tokenizer_kwargs={"strip_sep_token": True}))
    assert words(["red " * 40])[0, -1] == 0  # as if it were padding
    assert words.truncates("red " * 40)


def test_mode_clips_tells_what_it_cuts_around_its_own_special_tokens(folder: Path) -> None:
    settings = config(folder, tokenizer_mode="clips", tokenizer_kwargs={"bos_token": "<bos>"})
    settings["text_cfg"]["tokenizer_kwargs"]["cls_token"] = "<unk>"
    words = tokenizer.create(settings)
    inner = words._inner.tokenizer
    told = []
    for text in (("x " * count).strip() for count in range(1, 30)):
        ids = inner(text, add_special_tokens=False, verbose=False).input_ids
        row = words([text])[0].tolist()
        kept = row[: len(ids) + 2] == [2, *ids, 1]  # <bos> and <eos>
        assert words.truncates(text) == (not kept)
        told.append(kept)
    assert set(told) == {True, False}


def test_tokens_and_truncation_are_right_from_many_threads_at_once(words: Tokenizer) -> None:
    texts = [f"{text} {number}" for number in range(20) for text in CORPUS]
    expected = words(texts)
    cut = [words.truncates(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        asked = [(pool.submit(words, [text]), pool.submit(words.truncates, text)) for text in texts]
        rows = torch.cat([tokens.result() for tokens, _ in asked])
        told = [truncated.result() for _, truncated in asked]
    assert torch.equal(rows, expected)
    assert told == cut


def test_a_tokenizer_crosses_process_borders(words: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(words))
    assert torch.equal(again(CORPUS), words(CORPUS))
    assert again.files == words.files
    simple = Tokenizer(open_clip.SimpleTokenizer(context_length=16))
    assert torch.equal(pickle.loads(pickle.dumps(simple))(CORPUS), simple(CORPUS))


def test_another_tokenizer_is_another_encoder(saved: Path) -> None:
    encoder = load_saved(saved)
    before = encoder.fingerprint()
    name = "tokenizer_config.json"
    (saved / name).write_bytes((saved / name).read_bytes() + b"\n")
    assert load_saved(saved).fingerprint() != before


def test_only_the_named_files_are_read(saved: Path) -> None:
    before = load_saved(saved)
    (saved / "added_tokens.json").write_text('{"dress": 7}')
    (saved / ".DS_Store").write_bytes(b"\0")
    names = [*before.tokenizer.files]
    assert load_saved(saved, names=names).fingerprint() == before.fingerprint()


def test_sentencepiece_models_of_siglips_first_form_are_read(tmp_path: Path) -> None:
    import sentencepiece

    origin = tmp_path / "hub"
    origin.mkdir()
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS * 4), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(origin / "spiece"),
        vocab_size=200,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    specials = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    described = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, **specials}
    (origin / "tokenizer_config.json").write_text(json.dumps(described))
    words = tokenizer.create(config(origin))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(origin / "spiece.model"))
    for text in (JAPANESE, "is blue", "ein Foto von einem roten Hemd und einem Kleid"):
        whole = pieces.encode(text)
        expected = [*whole[:15], 1]
        assert [token for token in words([text])[0].tolist() if token != 0] == expected
        assert words.truncates(text) == (len(whole) > 15)


# ---- mistakes


def test_code_that_comes_with_a_tokenizer_is_not_run(folder: Path) -> None:
    settings = config(folder, tokenizer_kwargs={"trust_remote_code": True})
    assert tokenizer.create(settings)._settings["trust_remote_code"] is False  # type: ignore[index]  # no None here


def test_a_tokenizer_that_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(WeightsError, match=r"the tokenizer .*broken cannot be read(.|\n)*to do"):
        tokenizer.create(config(broken))


def test_without_transformers_the_remedy_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # as Python marks what cannot be found
    with pytest.raises(WeightsError, match=r"pip install 'raycd\[hf\]'"):
        tokenizer.create(config(folder))


@pytest.mark.slow
def test_where_transformers_is_not_installed_clip_works_and_siglip2_names_the_remedy(
    saved: Path,
) -> None:
    program = textwrap.dedent(BLOCKER) + textwrap.dedent(f"""
        from pathlib import Path
        from raycd.config import EncoderConfig
        from raycd.errors import WeightsError
        from raycd.model import encoder
        print(encoder.create(EncoderConfig(name="raycd-demo", pretrained="")).tokenize(["a"]).shape)
        try:
            encoder.load_saved(Path({str(saved)!r}))
        except WeightsError as error:
            print(error)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    assert "torch.Size([1, " in done.stdout
    assert "No module named 'transformers'" in done.stdout
    assert "pip install 'raycd[hf]'" in done.stdout


def test_an_encoder_of_this_form_crosses_process_borders(saved: Path) -> None:
    encoder = load_saved(saved)
    again: Encoder = pickle.loads(pickle.dumps(encoder))
    assert again.fingerprint() == encoder.fingerprint()


def test_where_a_tokenizer_was_read_is_no_part_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tokenizer.create(config(folder)).files
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert tokenizer.create(config(folder)).files == before
    assert not {"is_local", "local_files_only"} & json.loads(before["tokenizer_config.json"]).keys()
