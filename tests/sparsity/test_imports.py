import ast
import subprocess
import sys

HEAVY = ("flax", "orbax", "grain", "tensorflow_datasets", "sklearn", "matplotlib", "rich")


def test_sparsity_imports_jax_optax_and_chex_only():
    code = (
        "from sparsejax.sparsity import *; "
        f"import sys; print([m for m in {HEAVY} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_sparsity_imports_no_other_part_of_the_package_but_types():
    code = (
        "from sparsejax.sparsity import *; import sys; print(sorted({'.'.join(m.split('.')[:2]) "
        "for m in sys.modules if m.startswith('sparsejax')}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    parts = set(ast.literal_eval(out.stdout))
    assert parts - {"sparsejax.types"} == {"sparsejax", "sparsejax.sparsity"}


def test_nothing_is_imported_before_it_is_used():
    code = (
        "import sparsejax.sparsity, sys; print([m for m in ('jax', 'optax') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
