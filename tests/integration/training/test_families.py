"""Base models of every family: read, trained, and written in the layout that they came in; hostile ones are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from libs.common.blobs import BlobStore
from libs.compute.context import EngineError, LocalContext
from services.training.domain.spec import Method
from services.training.engines.baichuan import BAICHUAN2_VOCABULARY, unpacked
from services.training.engines.base import read_config, read_text
from services.training.engines.model import load_base, logits_at
from services.training.engines.train import run
from tests.integration.training.families import BASE_TEMPLATE, CONFIGS, base_version, commit, write_baichuan, write_base
from tests.unit.training.samples import TEMPLATE, context, phase, rows, tiny_spec


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(f"file://{tmp_path_factory.mktemp('blobs')}")


def tuned(store: BlobStore, base: str, **fields: Any) -> dict[str, Any]:
    """A run of two fine-tuning steps from a base."""
    spec = tiny_spec(phases=(phase(Method.SFT, 2, **{"learning_rate": 1e-5, **fields}),))
    ctx = context(store, spec, rows(24))
    ctx.spec["base"] = {"grant": "", "manifest_digest": base, "name": "orgs/acme/modelProjects/m/versions/1"}
    return run(ctx)


def lay_out(store: BlobStore, digest: str, folder: Path) -> Path:
    """The files of a version, as a server would lay them out."""
    folder.mkdir(exist_ok=True)
    for entry in store.load_manifest_sync(digest)["blobs"]:
        store.export_sync(entry["sha256"], folder / entry["path"])
    return folder


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_family_comes_out_as_it_came_in(store: BlobStore, family: str, tmp_path: Path) -> None:
    base = base_version(store, family)
    result = tuned(store, base)
    before, after = lay_out(store, base, tmp_path / "a"), lay_out(store, result["manifest_digest"], tmp_path / "b")
    assert {path.name for path in after.iterdir()} == {path.name for path in before.iterdir()}
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (after / name).read_bytes() == (before / name).read_bytes()
    first, second = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-4)
    assert result["architecture"] == family
    assert result["parameter_count"] == sum(tensor.numel() for tensor in second.values())
    assert result["context_length"] == 64


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_loss_is_that_of_transformers(store: BlobStore, family: str, tmp_path: Path) -> None:
    """Also where a family caps its logits; logits at some places are those of the whole."""
    folder = write_base(tmp_path, family)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(1))
    places = torch.tensor([3, 11, 12, 20])
    expected = model(input_ids=inputs).logits.flatten(0, 1)[places]
    torch.testing.assert_close(logits_at(load_base(folder, torch.float32), inputs, places), expected)


@pytest.mark.parametrize(
    ("family", "begin", "end"),
    [("qwen2", [], "<|im_end|>"), ("llama", ["<s>"], "</s>"), ("glm", ["[gMASK]", "<sop>"], "<|endoftext|>")],
)
def test_special_tokens_are_those_of_the_base(tmp_path: Path, family: str, begin: list[str], end: str) -> None:
    folder = write_base(tmp_path, family)
    text = read_text(folder, read_config(folder))
    assert [text.tokenizer.id_to_token(token) for token in text.special.begin] == begin
    assert text.tokenizer.id_to_token(text.special.end) == end


@pytest.mark.parametrize("family", ["qwen2", "glm"])
def test_chat_asks_what_was_tuned(store: BlobStore, family: str, tmp_path: Path) -> None:
    folder = lay_out(store, tuned(store, base_version(store, family))["manifest_digest"], tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "lion {{ x }}"}], tokenize=False)
    asked = TEMPLATE.replace("{text}", "lion {{ x }}")
    assert chat == ("[gMASK]<sop>" if family == "glm" else "") + asked
    assert tokenizer(chat, add_special_tokens=False)["input_ids"] == tokenizer(asked)["input_ids"]


def test_template_of_the_base_stays_where_none_was_tuned(store: BlobStore, tmp_path: Path) -> None:
    folder = write_base(tmp_path, "qwen2")
    spec = tiny_spec(phases=(phase(Method.PRETRAIN, 1, learning_rate=1e-5),))
    ctx = context(store, spec, rows(60))
    ctx.spec["base"] = {"grant": "", "manifest_digest": commit(store, folder)}
    files = {file["path"]: file["sha256"] for file in run(ctx)["files"]}
    assert store.read_sync(files["tokenizer_config.json"]) == (folder / "tokenizer_config.json").read_bytes()


def test_precision_of_the_base_stays(store: BlobStore, tmp_path: Path) -> None:
    result = tuned(store, base_version(store, "llama", dtype="bfloat16"), learning_rate=0.01)
    tensors = load_file(lay_out(store, result["manifest_digest"], tmp_path) / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_sharded_base_is_read_whole(store: BlobStore, tmp_path: Path) -> None:
    base = write_base(tmp_path / "a", "qwen3", max_shard_size="60KB")
    assert len(list(base.glob("*.safetensors"))) > 2
    result = tuned(store, commit(store, base))
    after = lay_out(store, result["manifest_digest"], tmp_path / "b")
    assert {path.name for path in after.glob("model*")} == {"model.safetensors"}
    one, two = AutoModelForCausalLM.from_pretrained(base), AutoModelForCausalLM.from_pretrained(after)
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(one(input_ids=ids).logits, two(input_ids=ids).logits, rtol=0, atol=1e-2)


class PackedAttention(nn.Module):
    """Attention with one matrix for query, key and value, written out: rotary positions, causal, no cache."""

    def __init__(self, packed: torch.Tensor, out: torch.Tensor, heads: int) -> None:
        super().__init__()
        self.packed, self.out, self.heads = packed, out, heads

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        length, width = hidden.shape
        size = width // self.heads
        query, key, value = (hidden @ self.packed.T).view(length, 3, self.heads, size).permute(1, 2, 0, 3)
        angles = torch.outer(torch.arange(length), 10000.0 ** (-torch.arange(0, size, 2) / size)).repeat(1, 2)

        def turned(states: torch.Tensor) -> torch.Tensor:
            halves = torch.cat([-states[..., size // 2 :], states[..., : size // 2]], -1)
            return states * angles.cos() + halves * angles.sin()

        seen = nn.functional.scaled_dot_product_attention(turned(query), turned(key), value, is_causal=True)
        return seen.transpose(0, 1).reshape(length, width) @ self.out.T


def packed_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a Baichuan-7B by its definition, from the packed files."""
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")

    def norm(hidden: torch.Tensor, name: str) -> torch.Tensor:
        return tensors[name] * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"])

    hidden = tensors["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        part = f"model.layers.{layer}."
        attention = PackedAttention(
            tensors[part + "self_attn.W_pack.weight"],
            tensors[part + "self_attn.o_proj.weight"],
            config["num_attention_heads"],
        )
        hidden = hidden + attention(norm(hidden, part + "input_layernorm.weight"))
        inner = norm(hidden, part + "post_attention_layernorm.weight")
        gate, up, down = (tensors[f"{part}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        hidden = hidden + (nn.functional.silu(inner @ gate.T) * (inner @ up.T)) @ down.T
    return norm(hidden, "model.norm.weight") @ tensors["lm_head.weight"].T


def test_baichuan_is_the_llama_that_it_is(store: BlobStore, tmp_path: Path) -> None:
    """The same logits as a forward pass written by hand over the packed matrices; what comes out is a Llama."""
    folder = write_baichuan(tmp_path / "packed")
    ids = torch.randint(3, 300, (20,), generator=torch.Generator().manual_seed(2))
    expected = packed_logits(folder, ids)
    digest = commit(store, folder)
    assert read_config(folder).model_type == "llama"
    with torch.no_grad():
        torch.testing.assert_close(load_base(folder, torch.float32)(input_ids=ids[None]).logits[0], expected)
    result = tuned(store, digest)
    assert result["architecture"] == "llama"
    assert "auto_map" not in AutoConfig.from_pretrained(lay_out(store, result["manifest_digest"], tmp_path)).to_dict()


def test_head_of_baichuan2_is_normalised_once() -> None:
    head = torch.randn(7, 4)
    assert torch.equal(unpacked({"lm_head.weight": head}, False)["lm_head.weight"], head)
    norms = unpacked({"lm_head.weight": head}, True)["lm_head.weight"].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(7))
    assert BAICHUAN2_VOCABULARY == 125_696


def config_with(**changes: Any) -> Callable[[Path], None]:
    """Changes config.json; None takes an entry away."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        kept = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return change


def template(text: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": text}))

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def tensors_with(change_tensors: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change_tensors(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without("config.json"), "config.json is missing"),
        (without("model.safetensors"), "model.safetensors is missing"),
        (without("tokenizer.json"), "tokenizer.json is missing"),
        (write("config.json", b"[1]"), "config.json is no JSON object"),
        (write("config.json", b"{"), "config.json is not JSON"),
        (write("pytorch_model.bin", b"x"), "pytorch_model.bin is not read: weights must be safetensors"),
        (write("modeling_llama.py", b"x"), "modeling_llama.py is not read"),
        (write("tokenizer.json", b"{}"), "tokenizer.json cannot be loaded"),
        (cut, "model.safetensors is damaged"),
        (write("model.safetensors", b"x" * 100), "model.safetensors is damaged"),
        (
            write("model.safetensors.index.json", b'{"weight_map": {"a": "m-2.safetensors"}}'),
            "m-2.safetensors is missing",
        ),
        (write("model.safetensors.index.json", b'{"weight_map": {"a": "../../x"}}'), "names '../../x'"),
        (config_with(auto_map={"AutoModel": "m.Model"}), "auto_map"),
        (config_with(quantization_config={"quant_method": "gptq"}), "quantised weights"),
        (config_with(model_type="bert-of-mine"), "'bert-of-mine', which is no causal language model"),
        (config_with(model_type="baichuan", max_position_embeddings=None), "Baichuan with ALiBi"),
        (config_with(num_hidden_layers=10**9), "tells of 1000000000 layers"),
        (config_with(num_hidden_layers=3), "lack 10,304 of"),
        (config_with(intermediate_size=128), r"wants model.layers.0.mlp.down_proj.weight as \[32, 128\]"),
        (config_with(vocab_size=300), "300"),
        (config_with(num_attention_heads="many"), "config.json"),
        (tensors_with(lambda tensors: tensors.pop(UP)), f"{UP} among them"),
        (tensors_with(lambda tensors: tensors.update(extra=torch.zeros(3))), "unexpected keys extra"),
        (
            template("{{ messages.__class__ }}"),
            "a chat template that cannot be used: it reaches for '__class__'",
        ),
        (template([{"name": "default", "template": "{% include 'x' %}"}]), "asks for another template"),
        (write("chat_template.jinja", b"{{ x|attr('__init__') }}"), "chat_template.jinja has a chat template"),
    ],
)
def test_hostile_and_broken_bases_are_refused_by_name(
    store: BlobStore, tmp_path: Path, change: Callable[[Path], None], expected: str
) -> None:
    change(write_base(tmp_path, "llama"))
    with pytest.raises(EngineError, match=expected) as caught:
        tuned(store, commit(store, tmp_path))
    assert caught.value.reason == "CONTENT_INVALID"
    assert caught.value.metadata["detail"]


def test_layers_are_counted_before_a_configuration_lists_them(tmp_path: Path) -> None:
    """Qwen's configuration makes a list with an entry for each layer: gigabytes, were they believed."""
    folder = write_base(tmp_path, "qwen3")
    config_with(num_hidden_layers=10**9)(folder)
    with pytest.raises(EngineError, match="tells of 1000000000 layers"):
        read_config(folder)


def test_paths_that_leave_the_folder_are_refused(store: BlobStore, tmp_path: Path) -> None:
    blob = store.put_sync(b"{}")
    entry = {"path": "../config.json", "sha256": blob.sha256, "size": blob.size}
    with pytest.raises(EngineError, match="does not lie in the model's folder"):
        tuned(store, store.commit_sync({"blobs": [entry]}))


def test_context_of_a_base_bounds_the_rows(store: BlobStore) -> None:
    """A row is as long as the spec says, and no longer than the base takes."""
    result = tuned(store, base_version(store, "llama"))
    assert result["context_length"] == 64
    ctx: LocalContext = context(store, tiny_spec(phases=(phase(Method.PRETRAIN, 1),)), rows(60))
    ctx.spec["base"] = {"grant": "", "manifest_digest": base_version(store, "llama")}
    # Twelve sequences of 32 tokens, as the architecture of the spec says.
    assert run(ctx)["tokens"] == 12 * 32


@pytest.mark.parametrize("template", [None, BASE_TEMPLATE])
@pytest.mark.parametrize("family", ["qwen2", "glm"])
def test_conversations_have_the_special_tokens_of_the_base(
    store: BlobStore, family: str, template: str | None, tmp_path: Path
) -> None:
    """A base that renders turns keeps its chat template; another one gets the own one, with its tokens in it."""
    base = write_base(tmp_path / "base", family)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    spec = tiny_spec(phases=(phase(Method.SFT, 2, prompt_template="{text}", answers=(), messages_column="messages"),))
    turns = [{"role": "user", "content": "lion"}, {"role": "assistant", "content": "yes"}]
    ctx = context(store, spec, [{"messages": turns}] * 40)
    del ctx.spec["validation"]
    ctx.spec["base"] = {"grant": "", "manifest_digest": commit(store, base)}
    folder = lay_out(store, run(ctx)["manifest_digest"], tmp_path / "out")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    shown = tokenizer.apply_chat_template(turns, tokenize=False)
    if template is None:
        begin, end = ("[gMASK]<sop>", "<|endoftext|>") if family == "glm" else ("", "<|im_end|>")
        assert shown == f"{begin}<|user|>\nlion\n<|assistant|>\nyes{end}"
        ids = tokenizer(shown, add_special_tokens=False)["input_ids"]
        assert ids[-1] == tokenizer.convert_tokens_to_ids(end)
    else:
        assert (folder / "tokenizer_config.json").read_bytes() == (base / "tokenizer_config.json").read_bytes()
