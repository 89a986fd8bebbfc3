"""What a program's first call leaves behind."""

import jax
import jax.numpy as jnp

from alignment import memory


def test_a_program_compiled_first_is_not_compiled_again_by_its_call(compilations):
    fn, seen, x = jax.jit(lambda n, x: (jnp.sin(x) @ x) * n, static_argnums=0), set(), jnp.ones((3, 3))
    compilations.clear()
    memory.compile_first(fn, seen, x, static=(2,))
    assert len(compilations) == 1
    memory.compile_first(fn, seen, x, static=(2,))
    fn(2, x)
    assert len(compilations) == 1
    memory.compile_first(fn, seen, x[:2, :2], static=(2,))
    assert len(seen) == 2


def test_nothing_is_compiled_for_what_is_traced():
    fn, seen = jax.jit(jnp.sin), set()

    def outer(x):
        memory.compile_first(fn, seen, x)
        return fn(x)

    jax.jit(outer)(jnp.ones(3))
    assert not seen
