"""The package stays small enough for one wheel, the world's data included."""

import zipfile
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "smidgen"
MOST_BYTES = 60_000_000  # beyond it the data would have to be a distribution of its own


def test_the_wheel_with_the_data_of_the_world_is_small(tmp_path):
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    with zipfile.ZipFile(tmp_path / "wheel.zip", "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in files:
            wheel.write(path, path.relative_to(PACKAGE.parent))
    size = (tmp_path / "wheel.zip").stat().st_size
    assert 10_000_000 < size < MOST_BYTES  # it has the bases
