"""`sam3d-tvm view`: pictures and a page of a splat."""

from pathlib import Path
from typing import Annotated

import typer

from sam3d_tvm import console as shown


def view(
    splat: Annotated[Path, typer.Argument(help="A Gaussian splat: .ply, .compressed.ply, .splat or .spz.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; by default that of the splat.")] = None,
    views: Annotated[int, typer.Option(help="Pictures from around the object, at least 1.")] = 8,
    size: Annotated[int, typer.Option(help="Pixels of a picture along each side, 16 to 4096.")] = 512,
    up: Annotated[
        str | None,
        typer.Option(help="What is up in the file: z, y or -y (COLMAP's); by default what it says itself, or its format."),
    ] = None,
) -> None:
    """Pictures of a splat, and one HTML file that shows it in any browser, without a network."""
    from sam3d_tvm.checks import check_choice, check_size
    from sam3d_tvm.png import save_png
    from sam3d_tvm.run_folder import check_writable
    from sam3d_tvm.splat.cameras import orbit_box
    from sam3d_tvm.splat.files import UPWARDS, load_splat
    from sam3d_tvm.splat.picture import contact_sheet, splat_picture
    from sam3d_tvm.splat.viewer import write_viewer

    check_size("views", views, 1)
    check_size("size", size, 16)
    if up is not None:
        check_choice("up", up, UPWARDS)
    folder = splat.parent if output is None else output
    check_writable(folder)
    console = shown.output()
    gaussians = load_splat(splat, None if up is None else UPWARDS[up])
    pictures = []
    with shown.bars() as tell:
        for number, camera in enumerate(orbit_box(*gaussians.bounds, views, frame=gaussians.frame)):
            tell("views", number, views)
            pictures.append(splat_picture(gaussians, camera, size))
        tell("views", views, views)
    written = [folder / f"{splat.stem}_view{number}.png" for number in range(views)]
    for path, picture in zip(written, pictures, strict=True):
        save_png(path, picture)
    save_png(sheet := folder / f"{splat.stem}_views.png", contact_sheet(pictures, min(views, 4)))
    write_viewer(page := folder / f"{splat.stem}.html", gaussians, splat.name)
    for path in (*written, sheet, page):
        shown.print_line(console, f"wrote {path}")
