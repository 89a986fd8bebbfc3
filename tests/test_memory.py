"""What a program's first call leaves behind."""

import jax
import jax.monitoring
import jax.numpy as jnp
import pytest

from alignment import memory


@pytest.fixture
def compiled():
    """Seconds of each compilation since the test began."""
    seconds = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seconds
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_program_compiled_first_is_not_compiled_again_by_its_call(compiled):
    fn, seen, x = jax.jit(lambda n, x: (jnp.sin(x) @ x) * n, static_argnums=0), set(), jnp.ones((3, 3))
    compiled.clear()
    memory.compile_first(fn, seen, x, static=(2,))
    assert len(compiled) == 1
    memory.compile_first(fn, seen, x, static=(2,))
    fn(2, x)
    assert len(compiled) == 1
    memory.compile_first(fn, seen, x[:2, :2], static=(2,))
    assert len(seen) == 2


def test_nothing_is_compiled_for_what_is_traced():
    fn, seen = jax.jit(jnp.sin), set()

    def outer(x):
        memory.compile_first(fn, seen, x)
        return fn(x)

    jax.jit(outer)(jnp.ones(3))
    assert not seen
