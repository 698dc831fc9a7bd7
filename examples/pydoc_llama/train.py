"""Train the example checkpoint: a Llama of 1.25 million parameters in the Hugging Face layout, on one core.

    python -m venv /tmp/train && /tmp/train/bin/pip install torch==2.13.0 numpy safetensors tokenizers
    /tmp/train/bin/python examples/pydoc_llama/train.py

Everything is seeded and runs on one thread: the same Python, library versions and kind of processor give the
same bytes. The kit itself does not need PyTorch; it only reads what this script writes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import corpus
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"


@dataclass(frozen=True)
class Config:
    """The keys of config.json that describe the architecture, under their Hugging Face names."""

    vocab_size: int = 2048
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 512
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


@dataclass(frozen=True)
class Training:
    """The recipe. Every step sees ``tokens_per_step`` tokens, cut into sequences of ``context``."""

    steps: int = 3000
    tokens_per_step: int = 2048
    context: int = 256
    long_context: int = 512  # of the last steps, so that the model has seen every position it claims
    long_share: float = 0.15
    learning_rate: float = 4e-3
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    held_out: float = 0.02
    seed: int = 20


class Attention(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape

        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.view(batch, length, -1, self.c.head_dim).transpose(1, 2)

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class GatedMLP(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.mlp = GatedMLP(c)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The module tree carries Hugging Face's parameter names, so ``state_dict`` is the checkpoint."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(c.vocab_size, c.hidden_size),
                "layers": nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers)),
                "norm": nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps),
            }
        )
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = (2 * c.num_hidden_layers) ** -0.5 if into_residual else 1.0
                nn.init.normal_(parameter, std=scale * c.hidden_size**-0.5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        c = self.c
        frequencies = c.rope_theta ** (-torch.arange(0, c.head_dim, 2) / c.head_dim)
        angles = torch.outer(torch.arange(tokens.shape[1]), frequencies).repeat(1, 2)
        cos, sin = angles.cos(), angles.sin()
        x = self.model["embed_tokens"](tokens)
        for layer in self.model["layers"]:
            x = layer(x, cos, sin)
        return F.linear(self.model["norm"](x), self.model["embed_tokens"].weight)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def train_tokenizer(texts: list[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
    )
    return tokenizer


def learning_rate(step: int, t: Training) -> float:
    if step < t.warmup:
        return t.learning_rate * (step + 1) / t.warmup
    progress = (step - t.warmup) / max(1, t.steps - t.warmup)
    return t.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def cut(tokens: torch.Tensor, starts: torch.Tensor, context: int) -> tuple[torch.Tensor, torch.Tensor]:
    index = starts[:, None] + torch.arange(context + 1)
    window = tokens[index]
    return window[:, :-1], window[:, 1:]


def loss_of(model: Llama, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


@torch.no_grad()
def held_out_loss(model: Llama, tokens: torch.Tensor, context: int) -> float:
    starts = torch.arange(0, len(tokens) - context - 1, context)
    return loss_of(model, *cut(tokens, starts, context)).item()


def train(model: Llama, tokens: torch.Tensor, held_out: torch.Tensor, t: Training) -> float:
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": t.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    generator = torch.Generator().manual_seed(t.seed)
    started = time.perf_counter()
    for step in range(t.steps):
        context = t.long_context if step >= t.steps * (1 - t.long_share) else t.context
        starts = torch.randint(len(tokens) - context - 1, (t.tokens_per_step // context,), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, t)
        loss = loss_of(model, *cut(tokens, starts, context))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), t.clip)
        optimizer.step()
        if step % 100 == 0 or step == t.steps - 1:
            seconds = time.perf_counter() - started
            validation = held_out_loss(model, held_out, t.context)
            print(
                f"step {step:5d}  loss {loss.item():.3f}  held out {validation:.3f}  {seconds:6.0f} s",
                flush=True,
            )
    return held_out_loss(model, held_out, t.context)


def save(folder: Path, model: Llama, tokenizer: Tokenizer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(model.c),
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "bos_token_id": bos,
        "eos_token_id": eos,
    }
    generation = {"bos_token_id": bos, "eos_token_id": eos, "do_sample": False}
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "model_max_length": model.c.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    }
    for name, content in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("tokenizer_config.json", names),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    weights = {name: value.to(torch.float16).contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


@torch.no_grad()
def sample(model: Llama, tokenizer: Tokenizer, prompt: str, length: int) -> str:
    ids = tokenizer.encode(prompt).ids
    for _ in range(length):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return tokenizer.decode(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--steps", type=int, default=Training.steps)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    t, c = Training(steps=arguments.steps), Config()
    torch.manual_seed(t.seed)

    texts = corpus.documents()
    versions = f"Python {sys.version.split()[0]}, torch {torch.__version__}"
    print(f"corpus sha256 {corpus.sha256(texts)} ({sum(map(len, texts))} characters), {versions}", flush=True)
    tokenizer = train_tokenizer(texts, c.vocab_size)
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(t.seed)).tolist()
    encoded = [[bos, *tokenizer.encode(texts[i], add_special_tokens=False).ids, eos] for i in order]
    tokens = torch.tensor([token for document in encoded for token in document])
    split = int(len(tokens) * (1 - t.held_out))
    model = Llama(c)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(tokens)} tokens, {size} parameters", flush=True)
    validation = train(model, tokens[:split], tokens[split:], t)
    print(f"held-out loss {validation:.3f} per token")
    save(arguments.output, model, tokenizer)
    for prompt in ("The following", "If the object", "A function definition"):
        print(repr(sample(model, tokenizer, prompt, 60)))


if __name__ == "__main__":
    main()
