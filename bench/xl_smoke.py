"""DiT-XL/2 in full size through both released formats: load, a DiffFit step, a few sampling steps.

    python bench/xl_smoke.py [--precision float32|bfloat16] [--folder FOLDER]

Makes random weights of 675 million parameters as an original .pt and as a diffusers folder (5.7 GB
in FOLDER, by default a temporary one), reads each in a process of its own and writes
bench/results/xl_smoke_PRECISION.json: seconds of every part and the peak resident memory of the
process. The bound to hold: 24 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from smidgen.core.fingerprint import fingerprints_match
from smidgen.diffusion.guidance import guide
from smidgen.diffusion.objective import add_noise, hybrid_loss
from smidgen.diffusion.sampler import ddpm, draw_noise, sample_generator
from smidgen.methods import configure, resolve
from smidgen.methods.build import build_delta
from smidgen.models.dit import DiT, preset
from smidgen.models.dit_weights import write_diffusers, write_original_pt
from smidgen.models.pretrained import load_base
from smidgen.models.sources import load_codec

RESULTS = Path(__file__).parent / "results"
NUM_CLASSES = 101  # Food-101, as in the paper's Table 1
TRAINABLE = 835_264  # its DiffFit row, counted


def make(folder: Path) -> None:
    """Random weights in both formats and a small codec that reduces by 8."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        norm_num_groups=4,
        mid_block_add_attention=False,
    ).save_pretrained(folder / "vae")
    model = DiT(preset("DiT-XL/2"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "pos_embed":
                parameter.normal_(std=0.02)
    write_original_pt(model, folder / "DiT-XL-2-256x256.pt")
    write_diffusers(model, folder / "diffusers", codec=load_codec(folder / "vae"))


def check(path: Path, codec: Path, precision: str) -> dict:
    """Loads, trains one step and samples; the numbers of this process."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(part: str):
        start = time.perf_counter()
        yield
        seconds[part] = round(time.perf_counter() - start, 2)

    dtype = getattr(torch, precision)
    with timed("load"):
        base = load_base(path, codec=codec, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    classes = [f"class {number}" for number in range(NUM_CLASSES)]
    delta = build_delta("difffit", base, configure("difffit"), classes, generator)
    assert delta.num_parameters() == TRAINABLE, delta.num_parameters()
    before = {name: p.detach().clone() for name, p in delta.named_parameters()}
    lr = resolve("difffit").default_lr
    optimizer = torch.optim.AdamW(delta.parameters(), lr=lr, weight_decay=0.0)
    with timed("train_step"), delta.attach(base):
        x0, noise = torch.randn(2, 1, 4, 32, 32, generator=generator)
        t, y = torch.tensor([500]), torch.tensor([7])
        x_t = add_noise(base.process.schedule, x0, t, noise)
        output = base.denoiser(x_t.to(dtype), t, y).float()
        hybrid_loss(output, x0, x_t, t, noise, base.process.schedule).mean().backward()
        optimizer.step()
    moved = sum(not torch.equal(p, before[name]) for name, p in delta.named_parameters())
    assert moved == len(before), f"{len(before) - moved} trained tensors did not move"
    with timed("sample_4_steps"), delta.attach(base), torch.no_grad():
        network = lambda x, t, y: base.denoiser(x.to(dtype), t, y).float()  # noqa: E731
        generators = [sample_generator(0, 0)]
        start = draw_noise((4, 32, 32), generators, base.device, torch.float32)
        denoise = guide(network, torch.tensor([7]), NUM_CLASSES, 1.5)
        images = base.codec.decode(ddpm(denoise, start, base.process.schedule, 4, generators))
    assert images.shape == (1, 3, 256, 256)
    assert bool(images.isfinite().all())
    return {
        "base": path.name,
        "trainable": delta.num_parameters(),
        "seconds": seconds,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "fingerprint": base.fingerprint,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--folder", type=Path, help="where the weights are made and kept")
    parser.add_argument("--check", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.check:
        codec = arguments.folder / "vae"
        print(json.dumps(check(arguments.check, codec, arguments.precision)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        weights = [folder / "DiT-XL-2-256x256.pt", folder / "diffusers"]
        if not all(path.exists() for path in weights):
            make(folder)
        runs = []
        for path in weights:
            command = [sys.executable, __file__, "--precision", arguments.precision]
            command += ["--folder", str(folder), "--check", str(path)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    assert fingerprints_match(*(run["fingerprint"] for run in runs)), "the formats disagree"
    result = {
        "command": f"python bench/xl_smoke.py --precision {arguments.precision}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "precision": arguments.precision,
        "torch": torch.__version__,
        "seed": 0,
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),  # above the threads: seconds are too high
        "runs": runs,
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=2) + "\n"
    (RESULTS / f"xl_smoke_{arguments.precision}.json").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
