"""Everything from nothing: data, every model, and the weights that ship.

    python -m training.all [--quick] [--folder build/training] [--weights sam3d_tvm/data/tiny]

Two chains run side by side, a process of one thread each, as several threads of torch get in each other's way. A stage that is
done is not done again, and one that was interrupted goes on from its last state; other numbers in the recipe want another
folder.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from sam3d_tvm.tiny import TINY, save_weights, shipped
from training.dataset import HELD_OUT_SEED, SEED, Dataset, fit_latent, make_file
from training.embedder import pretrain
from training.gaussian_decoder import train_gaussian_decoder
from training.loop import saved_weights
from training.mesh_decoder import train_mesh_decoder
from training.slat_generator import train_slat_generator
from training.structure_decoder import train_structure_decoder
from training.structure_generator import train_structure_generator
from training.structure_latent import StructureLatent

WAIT = 2.0  # seconds between looks at what the other chain has done
LATENT = "structure_latent.safetensors"


@dataclass(frozen=True)
class Recipe:
    """Objects of the data, in files of `per_file`; those that the latent is fitted on, and those held out to look at while
    training; steps of every model."""

    objects: int = 8000
    per_file: int = 250
    fitted_on: int = 400
    held_out: int = 64
    embedder: int = 5000
    structure_generator: int = 4500
    structure_decoder: int = 1200
    gaussian_decoder: int = 1500
    mesh_decoder: int = 700
    slat_generator: int = 2000


FULL = Recipe()
QUICK = Recipe(12, 6, 6, 4, 3, 3, 2, 2, 2, 2)
CHAINS = ("structure", "latents")


class Folder:
    """Where everything is written, and the log of it."""

    def __init__(self, path: Path, chain: str):
        self.path, self.chain = path, chain
        self.started = time.monotonic()

    def tell(self, line: str) -> None:
        """One line of the log, with the time of day, also to the terminal."""
        text = f"{time.strftime('%H:%M:%S')} {line}"
        print(text, flush=True)
        with open(self.path / "log.txt", "a") as file:
            file.write(text + "\n")

    def wait_for(self, *names: str) -> None:
        """Until files are there, that the other chain writes."""
        while not all((self.path / name).exists() for name in names):
            if os.getppid() == 1:
                sys.exit("the command that started this process is gone")
            time.sleep(WAIT)


def data_files(recipe: Recipe) -> list[tuple[str, int]]:
    """Name and first object of every file."""
    return [(f"data/{first // recipe.per_file:03d}.npz", first) for first in range(0, recipe.objects, recipe.per_file)]


def make_data(recipe: Recipe, folder: Folder) -> None:
    """Every second file of the data, the first chain also the latent and what is held out."""
    number = CHAINS.index(folder.chain)
    if number == 0 and not (folder.path / LATENT).exists():
        fit_latent(SEED, recipe.fitted_on).save(folder.path / LATENT)
        folder.tell(f"latent of structures: fitted on {recipe.fitted_on} objects")
    folder.wait_for(LATENT)
    latent = StructureLatent.load(folder.path / LATENT)
    files = data_files(recipe)
    for name, first in files[number::2]:
        if not (folder.path / name).exists():
            make_file(folder.path / name, SEED, first, recipe.per_file, latent, folder.tell)
    if number == 1 and not (folder.path / "held_out/000.npz").exists():
        make_file(folder.path / "held_out/000.npz", HELD_OUT_SEED, 0, recipe.held_out, latent, folder.tell)
    folder.wait_for("held_out/000.npz", *(name for name, _ in files))


def run_chain(recipe: Recipe, folder: Folder) -> None:
    """All stages of one of `CHAINS`."""
    torch.set_num_threads(1)
    make_data(recipe, folder)
    path, tell = folder.path, folder.tell
    data, held_out = Dataset(path / "data"), Dataset(path / "held_out")
    if folder.chain == "structure":
        pretrain(TINY.ss_condition_embedder, data, path, recipe.embedder, tell)
        latent = StructureLatent.load(path / LATENT)
        train_structure_generator(TINY, data, held_out, latent, path, recipe.structure_generator, tell)
    else:
        train_gaussian_decoder(TINY.slat_decoder_gs, data, path, recipe.gaussian_decoder, tell)
        train_mesh_decoder(TINY.slat_decoder_mesh, data, path, recipe.mesh_decoder, tell)
        train_structure_decoder(TINY.ss_decoder, data, held_out, path, recipe.structure_decoder, tell)
        folder.wait_for("embedder.safetensors")
        train_slat_generator(TINY, data, held_out, path, recipe.slat_generator, tell)


def write_weights(path: Path, weights: Path) -> None:
    """The weights of all models, by the names of the pipeline's, as they ship."""
    for name, file, prefix in (
        ("ss_condition_embedder", "structure_generator", "ss_condition_embedder."),
        ("ss_generator", "structure_generator", "ss_generator."),
        ("ss_decoder", "structure_decoder", ""),
        ("slat_condition_embedder", "slat_generator", "slat_condition_embedder."),
        ("slat_generator", "slat_generator", "slat_generator."),
        ("slat_decoder_gs", "gaussian_decoder", ""),
        ("slat_decoder_mesh", "mesh_decoder", ""),
    ):
        save_weights(weights, name, saved_weights(path, file, prefix))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the whole chain with a handful of objects and steps, as a test")
    parser.add_argument("--folder", type=Path, help="of data and states; default build/training, or build/training-quick")
    parser.add_argument("--weights", type=Path, help="where the weights are written; default those that ship, or in the folder")
    parser.add_argument("--chain", choices=CHAINS, help=argparse.SUPPRESS)  # a process of this command's own
    given = parser.parse_args(arguments)
    recipe = QUICK if given.quick else FULL
    path = given.folder or Path("build/training-quick" if given.quick else "build/training")
    for part in ("data", "held_out"):
        (path / part).mkdir(parents=True, exist_ok=True)
    if given.chain:
        run_chain(recipe, Folder(path, given.chain))
        return
    _keep_recipe(path / "recipe.json", recipe)
    started = time.monotonic()
    command = [sys.executable, "-m", "training.all", "--folder", str(path), *(["--quick"] if given.quick else [])]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    chains = [subprocess.Popen([*command, "--chain", chain], env=one_thread) for chain in CHAINS]
    try:
        while any(chain.poll() is None for chain in chains) and not any(chain.poll() for chain in chains):
            time.sleep(0.2)
    finally:
        for chain in chains:
            chain.terminate()
        failed = [name for name, chain in zip(CHAINS, chains, strict=True) if chain.wait()]
    if failed:
        sys.exit(f"training: {' and '.join(failed)} failed; the same command goes on where they were")
    weights = given.weights or (path / "weights" if given.quick else shipped())
    write_weights(path, weights)
    size = sum(file.stat().st_size for file in weights.glob("*.safetensors")) / 1e6
    Folder(path, "").tell(f"weights of {size:.1f} MB, {(time.monotonic() - started) / 60:.0f} min")


def _keep_recipe(path: Path, recipe: Recipe) -> None:
    """Write the recipe beside what is made by it; ValueError where other numbers stand there."""
    given = json.dumps(asdict(recipe), indent=1)
    if path.exists() and path.read_text() != given:
        raise ValueError(f"{path}: expected the recipe of this command, given another; choose another --folder")
    path.write_text(given)


if __name__ == "__main__":
    main()
