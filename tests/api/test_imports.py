"""What the first use of `smidgen` imports."""

import subprocess
import sys


def test_a_base_and_an_inspection_need_no_statistics():
    code = (
        "import sys, smidgen\n"
        "assert 'torch' not in sys.modules\n"
        "smidgen.load_base, smidgen.train, smidgen.anova\n"
        "heavy = {'scipy', 'diffusers', 'transformers', 'accelerate'} & sys.modules.keys()\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
