"""The models that `benchmarks.sequence` sets side by side: ours, and those of torch packages at the same sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.turns import Step

WIDTH, DEPTH, HEADS, VOCAB = 256, 4, 4, 256
PREFIX = "flashjax "
LLAMA = dict(activation="swiglu", norm="rmsnorm", hidden=688, qkv_bias=False, out_bias=False, mlp_bias=False)


@dataclass
class Contender:
    """Steps over the same tokens; None: the package has no such thing."""

    parameters: int
    forward: Step
    train: Step
    decode: Callable[[], Step] | None
    """Makes a cache of the length and returns a step of one token."""


def flashjax_contender(name: str, length: int, rows: int, depth: int = DEPTH) -> Contender:
    """`flash` (two units for a block), `transformer` (Llama's block), or a mixer in a plain Transformer."""
    import jax
    import jax.numpy as jnp
    import optax

    from flashjax.models.flash import Flash, FlashConfig
    from flashjax.models.transformer import Transformer, TransformerConfig
    from flashjax.objectives.language import cross_entropy
    from flashjax.ops.platform import jit_here

    if name == "flash":
        made: Any = FlashConfig(vocab_size=VOCAB, width=WIDTH, depth=2 * depth, max_length=length)
        model: Any = Flash(made)
    else:
        shared = dict(vocab_size=VOCAB, width=WIDTH, depth=depth, heads=HEADS, max_length=length, position="rope")
        own = LLAMA if name == "transformer" else {"mixer": name}
        model = Transformer(TransformerConfig(**shared, **own))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (rows, length + 1)), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), tokens[:, :-1])
    params, further = variables["params"], {n: v for n, v in variables.items() if n not in ("params", "losses")}
    optimizer = optax.adamw(1e-3, weight_decay=0.05)
    held = {"params": params, "state": jax.jit(optimizer.init)(params)}

    def apply(params: Any, tokens: Any) -> Any:
        return model.apply({"params": params, **further}, tokens)

    def update(params: Any, state: Any, tokens: Any) -> Any:
        def loss(params: Any) -> Any:
            return cross_entropy(apply(params, tokens[:, :-1]), tokens[:, 1:])[0].mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    prompt = tokens[:, :-1]
    forward_jit = jit_here(apply, backward=False).lower(params, prompt).compile()
    train_jit = jit_here(update, backward=True, donate_argnums=(0, 1))
    train_jit = train_jit.lower(params, held["state"], tokens).compile()

    def forward() -> None:
        jax.block_until_ready(forward_jit(held["params"], prompt))

    def train() -> None:
        held["params"], held["state"], value = train_jit(held["params"], held["state"], tokens)
        jax.block_until_ready((held, value))

    def decode() -> Step:
        everything = {"params": held["params"], **further}
        cache = model.init_cache(1, length + 64)
        lengths = jnp.full((1,), length, jnp.int32)
        prefill = jax.jit(lambda v, t, n, c: model.apply(v, t, n, c, method="prefill"), donate_argnums=3)
        step_jit = jax.jit(lambda v, t, c: model.apply(v, t, c, method="step"), donate_argnums=2)
        live = {"cache": prefill(everything, prompt[:1], lengths, cache)[1]}

        def step() -> None:
            logits, live["cache"] = step_jit(everything, prompt[:1, 0], live["cache"])
            jax.block_until_ready(logits)

        return step

    return Contender(sum(x.size for x in jax.tree.leaves(params)), forward, train, decode)


def torch_contender(name: str, length: int, rows: int) -> Contender:
    """The peer's model, at the sizes of ours."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(0)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, VOCAB, (rows, length + 1)))
    if name.startswith("hugging face"):
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            intermediate_size=688,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            max_position_embeddings=length + 64,
            tie_word_embeddings=True,
            attn_implementation=name.split()[-1],
        )
        model: Any = LlamaForCausalLM(config)

        def logits(x: Any) -> Any:
            return model(x, use_cache=False).logits
    elif name == "flash-pytorch":
        from flash_pytorch import FLASHTransformer

        model = FLASHTransformer(num_tokens=VOCAB, dim=WIDTH, depth=2 * DEPTH, causal=True, norm_type="layernorm")
        logits = model
    elif name == "performer-pytorch":
        from performer_pytorch import PerformerLM

        sizes = dict(num_tokens=VOCAB, max_seq_len=length, dim=WIDTH, depth=DEPTH, heads=HEADS, dim_head=WIDTH // HEADS)
        model = PerformerLM(**sizes, causal=True, tie_embed=True)
        logits = model
    else:
        from linear_attention_transformer import LinearAttentionTransformerLM

        sizes = dict(num_tokens=VOCAB, max_seq_len=length, dim=WIDTH, depth=DEPTH, heads=HEADS, dim_head=WIDTH // HEADS)
        model = LinearAttentionTransformerLM(**sizes, causal=True, use_axial_pos_emb=False)
        logits = model
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05, fused=True)
    prompt = tokens[:, :-1]

    def forward() -> None:
        model.eval()
        with torch.inference_mode():
            logits(prompt)

    def train() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(logits(prompt).reshape(-1, VOCAB), tokens[:, 1:].reshape(-1)).backward()
        optimizer.step()

    def decode() -> Step:
        live: dict[str, Any] = {}
        with torch.inference_mode():
            live["past"] = model(prompt[:1], use_cache=True).past_key_values

        def step() -> None:
            with torch.inference_mode():
                live["past"] = model(prompt[:1, :1], past_key_values=live["past"], use_cache=True).past_key_values

        return step

    cached = decode if name.startswith("hugging face") else None
    return Contender(sum(p.numel() for p in model.parameters()), forward, train, cached)


def make(name: str, length: int, rows: int, depth: int = DEPTH) -> Contender:
    """The contender of that name over `rows` rows of `length` tokens; `depth`, in Transformer blocks, is for ours."""
    if name.startswith(PREFIX):
        return flashjax_contender(name.removeprefix(PREFIX), length, rows, depth)
    return torch_contender(name, length, rows)
