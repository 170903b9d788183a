#!/usr/bin/env python3
"""Write golden LoRA adapters: tests/cases-lora/NAME, each over a base folder of tests/cases.

    make_lora_reference.py [--only NAME ...] [--list] [--no-check]

Needs torch 2.13, transformers 5.23, peft 0.21. A folder holds
    adapter_config.json, adapter_model.safetensors   as peft saves them, values seeded
    prompt.i32      the first tokens of the base's prompt, little-endian int32
    expected.f32    logits of base and adapter [tokens, vocab], little-endian float32, float32 eager
    expected.json   base, and what was measured (figures are largest differences of a logit)
refuse-* have no logits: a reader must name what it does not support.

What peft writes
----------------
Every name is `base_model.model.` + the module's name in transformers + a suffix:
    linear     .lora_A.weight [r, in], .lora_B.weight [out, r]         W' = W + s B A
    embedding  .lora_embedding_A [r, vocab], .lora_embedding_B [hidden, r], no `.weight`; row t' = row t + s B A[:, t]
    s = alpha / r, with use_rslora alpha / sqrt(r).
    alpha of a module: the value of the FIRST key, in file order, of alpha_pattern that matches `(.*\\.)?(KEY)$` over
    its name without `base_model.model.`, else lora_alpha. A key may begin with `^`. r is A's first dimension (as r
    and rank_pattern give it in the same way).
    The names in the file say what is adapted: target_modules, layers_to_transform and exclude_modules add nothing.
    (A list in target_modules matches a name that equals an entry or ends in `.ENTRY`, a string is a regex over the
    whole name; layers_to_transform thins a list: embeddings and head, which have no number, drop out.)
jamba     model.embed_tokens, lm_head; in model.layers.N: mamba.{in,x,dt,out}_proj, self_attn.{q,k,v,o}_proj,
          feed_forward.{gate,up,down}_proj; experts and router
              of 4.x: feed_forward.experts.E.{gate,up,down}_proj, feed_forward.router (jamba-experts)
              of 5.x, fused, see below: feed_forward.experts, feed_forward.router (jamba-fused)
mamba(2)  backbone.embeddings, lm_head, backbone.layers.N.mixer.{in,x,dt}_proj. peft 0.17 and 0.21 refuse out_proj and
          conv1d for mamba, mamba2 and falcon_mamba; older files may hold out_proj
llama     in model.layers.N: self_attn.{q,k,v,o}_proj, mlp.{gate,up,down}_proj
mixtral   attention as llama; 4.x: block_sparse_moe.experts.E.{w1,w2,w3} (w1 = gate, w3 = up, w2 = down),
          block_sparse_moe.gate; 5.x, fused: mlp.experts, mlp.gate
zamba     in model.layers.N: mamba.{in,out}_proj or mamba_decoder.mamba.{in,out}_proj, linear,
          shared_transf.self_attn.{q,k,v,o}_proj, shared_transf.feed_forward.{gate,up,down}_proj.
          x_proj_weight and dt_proj_weight are parameters of the mixer; peft 0.21 wraps them but cannot run the result
zamba2    as zamba, but shared_transformer, feed_forward.{gate_up_proj,down_proj}, and the base's own adapters as
          linears: feed_forward.gate_up_proj_adapter_list.K.{0,1}, self_attn.linear_{q,k,v}_adapter_list.K.{0,1}
Fused parameters (target_parameters; base tensor [E, out, in]):
    .lora_A.weight [E*r, in]   row e*r + i     (expert-major)
    .lora_B.weight [out, r*E]  column i*E + e  (rank-major)
    so W'[e] = W[e] + s B[:, e::E] A[e*r:(e+1)*r]; r is one expert's rank (rows of A / E) in s, r and rank_pattern.
    The names lack the parameter: wrappers nest in the order in which the module declares its parameters, first
    innermost. Both of gate_up_proj (rows: gate, then up) and down_proj: `experts.base_layer.lora_A` is gate_up_proj,
    `experts.lora_A` is down_proj. One of them: it is `experts.lora_A`, and only target_parameters says which
    (jamba-fused-down). Patterns are matched over `...experts.gate_up_proj`, `...experts.down_proj`, `...router.weight`.
    A 2-D parameter looks like a linear: `feed_forward.router.lora_A.weight` [r, in], `mlp.gate.lora_A.weight`.
    layers_to_transform does not thin target_parameters.
    peft turns mixtral's "all-linear", or a list with w1 and w3, into gate_up_proj of twice the rank and twice the alpha
    (rank_pattern and alpha_pattern get the key `.*\\.gate_up_proj`; mixtral-fused).
    Under 5.x peft reads 4.x files of mixtral (mixtral-experts is computed so), not of jamba: those are computed here
    with modules like 4.x's. transformers 4.57 with peft 0.17 reads all jamba cases but the fused ones, mamba, llama and
    mixtral-experts, and its logits differ from expected.f32 by at most 1.3e-5.

Traps
-----
* transformers 5.x computes dt_proj.weight @ x in Jamba, Mamba and Falcon-Mamba and never calls the module: there an
  adapter on dt_proj does NOTHING until it is merged; in 4.57 it acts. Expected logits are with it
  (`dt_proj_ignored`: how far off the unmerged model of 5.x is).
* Zamba and Zamba2: hybrid layers share a block's weights but each has an adapter of its OWN, under its own number.
  merge_and_unload adds all of them to the one shared tensor, which is another model (`merged_by_peft`): merging needs a
  copy of the block for every hybrid layer (`merged_untied`).
* Zamba2: adapter_list.K under layer N is in use only when K is N's hybrid ordinal; others are in the file all the same
  (`idle`). The base's file has slot K under the block's first layer only, an adapter has every slot under every layer.
* Tied embeddings: an adapter on the embeddings does not change the head, nor the other way round (jamba-tied, mamba);
  merge_and_unload changes both. Merging needs a head of its own.
* With embed_tokens or lm_head in target_modules peft also saves the base tensors unless save_embedding_layers=False:
  `embed_tokens.base_layer.weight`, `lm_head.base_layer.weight` (jamba-seed). They repeat the base's.
* modules_to_save: whole tensors, plain names (`model.layers.0.input_layernorm.weight`); bias="all", "lora_only":
  `.bias` of base modules, `.base_layer.bias` of adapted ones; DoRA: `.lora_magnitude_vector`; lora_bias:
  `.lora_B.bias`; trainable_token_indices: `embed_tokens.token_adapter.trainable_tokens_delta`.
"""
import argparse, json, os, re, shutil, warnings, zlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore")
import numpy as np
import torch
import peft
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
HERE = os.path.dirname(os.path.abspath(__file__))
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}

# ----------------------------------------------------------------------------------------------
# cases
# ----------------------------------------------------------------------------------------------
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]


def case(base, seed, tokens=16, dtype="f32", save_embeddings=False, old_experts=False, strength=0.4, **lora):
    return dict(base=base, seed=seed, tokens=tokens, dtype=dtype, save_embeddings=save_embeddings,
                old_experts=old_experts, strength=strength, lora=lora)


CASES = {
    "jamba-list": case("jamba-dense", 201, dtype="f16", r=2, lora_alpha=6,
                       target_modules=ATTENTION + MLP + ["in_proj", "x_proj", "dt_proj", "out_proj"]),
    "jamba-seed": case("jamba-mixed", 202, 32, dtype="bf16", save_embeddings=True, r=8, lora_alpha=8,
                       target_modules=["embed_tokens", "x_proj", "in_proj", "out_proj"]),
    "jamba-tied": case("jamba-flags", 203, r=3, lora_alpha=4,
                       target_modules=["embed_tokens", "lm_head", "in_proj", "out_proj"]),
    "jamba-experts": case("jamba-moe", 204, dtype="f16", old_experts=True, r=2, lora_alpha=4,
                          target_modules=["router"] + MLP,
                          rank_pattern={"router": 1, r"experts\.2\.\w+": 3, r"layers\.[1-3]\..*up_proj": 1},
                          alpha_pattern={"down_proj": 7, r"^model\.layers\.5\.feed_forward\.experts\.0\.gate_proj": 1}),
    "jamba-fused": case("jamba-moe", 205, r=2, lora_alpha=3, use_rslora=True, target_modules=["q_proj"],
                        target_parameters=["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj",
                                           "feed_forward.router.weight"],
                        rank_pattern={"experts.down_proj": 1}, alpha_pattern={r"router\.weight": 2}),
    "jamba-fused-down": case("jamba-moe", 206, dtype="bf16", r=3, lora_alpha=3, target_modules=[],
                             target_parameters=["experts.down_proj"]),
    "mamba": case("mamba", 207, r=2, lora_alpha=2, use_rslora=True,
                  target_modules=r"backbone\.layers\.[0-2]\.mixer\.(in|x|dt)_proj|.*\.embeddings"),
    "mamba2": case("mamba2", 208, dtype="bf16", r=3, lora_alpha=6, target_modules=["in_proj", "lm_head"]),
    "zamba2-blocks": case("zamba2-abc", 230, 24, strength=0.15, r=2, lora_alpha=4, layers_to_transform=[0, 1, 2, 4],
                          target_modules=ATTENTION + ["linear", "in_proj", "out_proj", "gate_up_proj", "down_proj"]),
    "zamba2-adapters": case("zamba2-abc", 210, 24, r=1, lora_alpha=1,
                            target_modules=r".*\.layers\.[04]\..*_adapter_list\.\d+\.[01]"),
    "zamba": case("zamba", 211, dtype="bf16", r=1, lora_alpha=2, layers_to_transform=[0, 2, 4],
                  target_modules=ATTENTION + MLP + ["linear", "in_proj", "out_proj"]),
    "llama-layers": case("llama", 213, r=2, lora_alpha=8, layers_to_transform=[1, 3], layers_pattern="layers",
                         target_modules=ATTENTION + MLP, alpha_pattern={"mlp.*": 5, "up_proj": 50},
                         rank_pattern={"self_attn.v_proj": 3}),
    "llama-ends": case("llama", 214, r=4, lora_alpha=2, target_modules=["embed_tokens", "lm_head"]),
    "mixtral-experts": case("mixtral", 215, r=1, lora_alpha=2, target_modules=["gate", "w1", "w2", "w3"]),
    "mixtral-fused": case("mixtral", 216, dtype="f16", r=1, lora_alpha=2, target_modules="all-linear"),
}
REFUSED = {
    "refuse-dora": case("llama", 221, r=1, layers_to_transform=[0], target_modules=["k_proj"], use_dora=True),
    "refuse-modules-to-save": case("llama", 222, r=1, layers_to_transform=[0], target_modules=["k_proj"],
                                   modules_to_save=["norm"]),
    "refuse-bias": case("mamba", 223, r=1, layers_to_transform=[0], target_modules=["x_proj"], bias="all"),
    "refuse-lora-bias": case("llama", 224, r=1, layers_to_transform=[0], target_modules=["k_proj"], lora_bias=True),
    "refuse-tokens": case("llama", 225, r=1, layers_to_transform=[0], target_modules=["k_proj"],
                          trainable_token_indices={"embed_tokens": [3, 5]}),
}


# ----------------------------------------------------------------------------------------------
# Jamba's experts and router as modules, as transformers 4.x has them
# ----------------------------------------------------------------------------------------------
class OldExpert(nn.Module):
    def __init__(self, gate_up, down):
        super().__init__()
        rows = gate_up.shape[0] // 2
        self.gate_proj, self.up_proj, self.down_proj = (linear(w) for w in (gate_up[:rows], gate_up[rows:], down))

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class OldMoe(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.top_k = block.top_k
        self.router = linear(block.router.weight)
        self.experts = nn.ModuleList(map(OldExpert, block.experts.gate_up_proj, block.experts.down_proj))

    def forward(self, x):
        weights = self.router(x).softmax(-1)
        top = weights.topk(self.top_k, -1)
        weights = torch.zeros_like(weights).scatter(-1, top.indices, top.values)
        return sum(weights[..., e:e + 1] * expert(x) for e, expert in enumerate(self.experts))


def linear(weight):
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight.data = weight.data.clone()
    return module


def with_old_experts(model):
    for layer in model.model.layers:
        if hasattr(layer.feed_forward, "experts"):
            layer.feed_forward = OldMoe(layer.feed_forward)
    return model


# ----------------------------------------------------------------------------------------------
# making
# ----------------------------------------------------------------------------------------------
def load_base(spec):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        os.path.join(HERE, "cases", spec["base"]), dtype=torch.float32, attn_implementation="eager").float().eval()
    model.name_or_path = model.config._name_or_path = spec["base"]
    return with_old_experts(model) if spec["old_experts"] else model


def adapted(model):
    return [(n, m) for n, m in model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)]


def fill(model, spec):
    """Each product scaling * B A is about `strength` of a usual weight; values as the stored type holds them."""
    factors = lambda m, side: getattr(m, "lora_" + side) or getattr(m, "lora_embedding_" + side)
    for name, module in adapted(model):
        table = bool(module.lora_embedding_A)
        for side in "AB":
            p = factors(module, side)["default"]
            p = p if table else p.weight
            g = torch.Generator().manual_seed((spec["seed"] * 1000003 + zlib.crc32(f"{name}.{side}".encode())) % 2**63)
            scale = spec["strength"] / (module.scaling["default"] * module.r["default"] ** 0.5)
            scale = scale if side == "B" else 1.0 if table else p.shape[1] ** -0.5
            p.data = (scale * torch.randn(p.shape, generator=g)).to(DTYPES[spec["dtype"]]).float()
        for p in (m.bias for m in module.lora_B.values() if m.bias is not None):
            p.data.fill_(0.25)


def save(model, spec, folder):
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, save_embedding_layers=spec["save_embeddings"])
    path = os.path.join(folder, "adapter_model.safetensors")
    tensors = {k: v.to(DTYPES[spec["dtype"]]).contiguous() for k, v in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    path = os.path.join(folder, "adapter_config.json")
    config = json.load(open(path))
    for key in ("target_modules", "target_parameters"):  # peft's sets come in any order
        if isinstance(config.get(key), list):
            config[key].sort()
    json.dump(config, open(path, "w"), indent=2)
    for name in os.listdir(folder):
        if not name.startswith("adapter_"):
            os.remove(os.path.join(folder, name))


def save_old_mixtral(spec, folder):
    """The file that peft under transformers 4.x writes: 5.x fuses its modules before they can be saved."""
    model = load_base(spec)
    config = peft.LoraConfig(task_type="CAUSAL_LM", inference_mode=True, base_model_name_or_path=spec["base"],
                             **spec["lora"])
    shutil.rmtree(folder, ignore_errors=True)
    config.save_pretrained(folder)
    path = os.path.join(folder, "adapter_config.json")
    text = json.load(open(path))
    text["target_modules"].sort()
    json.dump(text, open(path, "w"), indent=2)
    tensors, r = {}, config.r

    def rand(name, *shape):
        seed = spec["seed"] * 1000003 + zlib.crc32(name.encode())
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def add(name, rows, columns):
        name = f"base_model.model.model.layers.{name}"
        tensors[name + ".lora_A.weight"] = rand(name + "A", r, columns) * columns ** -0.5
        tensors[name + ".lora_B.weight"] = rand(name + "B", rows, r) * 0.4 * r ** 0.5 / config.lora_alpha

    hidden, inner = model.config.hidden_size, model.config.intermediate_size
    for i in range(model.config.num_hidden_layers):
        add(f"{i}.block_sparse_moe.gate", model.config.num_local_experts, hidden)
        for e in range(model.config.num_local_experts):
            add(f"{i}.block_sparse_moe.experts.{e}.w1", inner, hidden)
            add(f"{i}.block_sparse_moe.experts.{e}.w3", inner, hidden)
            add(f"{i}.block_sparse_moe.experts.{e}.w2", hidden, inner)
    tensors = {k: v.to(DTYPES[spec["dtype"]]) for k, v in tensors.items()}
    save_file(tensors, os.path.join(folder, "adapter_model.safetensors"), metadata={"format": "pt"})


def make(name, spec, folder):
    """The adapted model; all but the 4.x forms read back from what was saved."""
    if name == "mixtral-experts":
        save_old_mixtral(spec, folder)
    else:
        model = peft.get_peft_model(load_base(spec), peft.LoraConfig(task_type="CAUSAL_LM", **spec["lora"])).eval()
        fill(model, spec)
        save(model, spec, folder)
        if spec["old_experts"]:
            return model
    return peft.PeftModel.from_pretrained(load_base(spec), folder).float().eval()


# ----------------------------------------------------------------------------------------------
# running
# ----------------------------------------------------------------------------------------------
@torch.no_grad()
def logits(model, prompt):
    return model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0].float()


def apply_dt_proj(model):
    """Merges the adapters that transformers passes by."""
    count = 0
    for name, module in adapted(model):
        if name.endswith(".dt_proj"):
            module.merge()
            count += 1
    return count


def untie(model):
    """Its own weights for every adapted module, so that merging one leaves others alone."""
    for _, module in adapted(model):
        base = module.get_base_layer()
        for name, p in list(base.named_parameters(recurse=False)):
            setattr(base, name, nn.Parameter(p.data.clone()))


@torch.no_grad()
def effects(model, prompt, full):
    """Largest change of a logit when one module's adapter is taken away."""
    for name, module in adapted(model):
        b = module.lora_embedding_B if module.lora_embedding_B else module.lora_B
        p = b["default"] if module.lora_embedding_B else b["default"].weight
        again = module.merged and not module.unmerge()
        keep = p.data.clone()
        p.data.zero_()
        if again:
            module.merge()
        yield name.removeprefix("base_model.model."), (logits(model, prompt) - full).abs().max().item()
        if again:
            module.unmerge()
        p.data.copy_(keep)
        if again:
            module.merge()


def one(name, spec, root, check):
    folder = os.path.join(root, name)
    prompt = np.fromfile(os.path.join(HERE, "cases", spec["base"], "prompt.i32"), "<i4")[:spec["tokens"]].tolist()
    far = lambda a, b: round((a - b).abs().max().item(), 9)
    base = logits(load_base(spec), prompt)
    model = make(name, spec, folder)
    passed_by = logits(model, prompt)
    dt_count = apply_dt_proj(model)
    full = logits(model, prompt)
    head = dict(case=name, base=spec["base"], seed=spec["seed"], stored_dtype=spec["dtype"], tokens=len(prompt),
                vocab=full.shape[1], adapter_moves_logits=far(full, base), modules=len(adapted(model)))
    if spec["old_experts"]:
        stock = transformers.AutoModelForCausalLM.from_pretrained(
            os.path.join(HERE, "cases", spec["base"]), dtype=torch.float32, attn_implementation="eager")
        head["modules_of_4x_vs_fused_without_adapter"] = far(logits(stock.eval(), prompt), base)
    if dt_count:
        head["dt_proj_ignored"] = far(full, passed_by)
    if check:
        moved = dict(effects(model, prompt, full))
        idle = sorted(k for k, v in moved.items() if v == 0)
        least = min((v, k) for k, v in moved.items() if v > 0)
        head["smallest_effect"] = [least[1], round(least[0], 4)]
        head["idle"] = idle
    again = make(name, spec, folder)
    head["merged_by_peft"] = far(logits(again.merge_and_unload(), prompt), full)
    again = make(name, spec, folder)
    untie(again)
    head["merged_untied"] = far(logits(again.merge_and_unload(), prompt), full)
    head["versions"] = dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__)
    np.asarray(full).astype("<f4").tofile(os.path.join(folder, "expected.f32"))
    np.asarray(prompt).astype("<i4").tofile(os.path.join(folder, "prompt.i32"))
    json.dump(head, open(os.path.join(folder, "expected.json"), "w"), indent=1)
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    print(f"{name:18s} {size / 1e3:5.1f} KB  moves {head['adapter_moves_logits']:.2f}"
          f"  merged {head['merged_untied']:.1e}  by peft {head['merged_by_peft']:.1e}"
          + (f"  dt_proj ignored {head['dt_proj_ignored']:.2f}" if dt_count else "")
          + (f"  least {least[0]:.3f} {least[1]}  idle {len(idle)}" if check else ""), flush=True)


def refused(name, spec, root):
    model = peft.get_peft_model(load_base(spec), peft.LoraConfig(task_type="CAUSAL_LM", **spec["lora"])).eval()
    fill(model, spec)
    save(model, spec, os.path.join(root, name))
    tensors = load_file(os.path.join(root, name, "adapter_model.safetensors"))
    odd = [k for k in tensors if not k.endswith(("lora_A.weight", "lora_B.weight"))]
    print(f"{name:18s} also {', '.join(odd[:3])}", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--root", default=os.path.join(HERE, "cases-lora"))
    ap.add_argument("--only", nargs="*")
    ap.add_argument("--list", action="store_true")
    ap.add_argument("--no-check", action="store_true")
    a = ap.parse_args()
    for name, spec in {**CASES, **REFUSED}.items():
        if a.only and name not in a.only:
            continue
        if a.list:
            print(f"{name:24s} {spec['base']:12s} {spec['dtype']}")
        elif name in REFUSED:
            refused(name, spec, a.root)
        else:
            one(name, spec, a.root, not a.no_check)


if __name__ == "__main__":
    main()
