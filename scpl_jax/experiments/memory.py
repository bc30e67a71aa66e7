"""The old name of :mod:`scpl_jax.benchmarks.memory`, for one release."""

from scpl_jax.experiments.moved import run_moved

if __name__ == "__main__":
    run_moved("memory")
