"""The estimate against programs counted by hand and against XLA's own plan, free memory against fake files, and what is refused."""

import doctest
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxad import noise, training
from jaxad.denoisers import MLP, DiT, UNet
from jaxad.runtime import memory
from jaxad.runtime.memory import Needed, available_bytes, check_batch, peak_bytes, training_bytes
from jaxad.runtime.sharding import BATCH_AXIS, data_mesh

GIB = 2**30
SCHEDULE = noise.cosine(100)
VECTOR = jax.ShapeDtypeStruct((1000,), jnp.float32)  # 4,000 bytes
SQUARE = jax.ShapeDtypeStruct((100, 100), jnp.float32)  # 40,000 bytes


def test_the_examples_in_the_docstrings():
    failed, attempted = doctest.testmod(memory)
    assert attempted > 5
    assert failed == 0


# ------------------------------------------------------------------------------------------------------------ counted by hand


def chain(x, w, length=3):
    """Matrix products, which XLA never fuses with each other."""
    for _ in range(length):
        x = x @ w
    return x


@pytest.mark.parametrize("length", [2, 3, 7])
def test_a_value_is_alive_until_its_last_use(length):
    # Two inputs, and while one product is made from another, both of these.
    assert peak_bytes(partial(chain, length=length), SQUARE, SQUARE) == 4 * 40_000


def test_what_is_used_late_stays_alive():
    def late(x, w):
        first = x @ w
        return chain(first, w) @ first

    assert peak_bytes(late, SQUARE, SQUARE) == 5 * 40_000


def test_a_donated_input_ends_with_its_last_use():
    assert peak_bytes(chain, SQUARE, SQUARE, donate_argnums=0) == 3 * 40_000
    # The second is needed until the end.
    assert peak_bytes(chain, SQUARE, SQUARE, donate_argnums=(0, 1)) == 3 * 40_000
    # An element-wise result takes the place of its operand.
    assert peak_bytes(jnp.sin, VECTOR) == 8_000
    assert peak_bytes(jnp.sin, VECTOR, donate_argnums=(0,)) == 4_000


def test_donated_pytrees_are_counted_leaf_by_leaf():
    def swap(kept, given):
        return jnp.sin(given["a"]), jnp.cos(given["b"]), kept["c"].sum()

    given = {"a": VECTOR, "b": VECTOR}
    assert peak_bytes(swap, {"c": SQUARE}, given) == 40_000 + 4 * 4_000 + 4
    assert peak_bytes(swap, {"c": SQUARE}, given, donate_argnums=1) == 40_000 + 2 * 4_000 + 4


def test_element_wise_values_with_one_reader_are_not_written_down():
    assert peak_bytes(lambda x: jnp.sum(jnp.exp(jnp.sin(x) * 2 + 1)), VECTOR) == 4_000 + 4
    assert peak_bytes(lambda x: jnp.sum(x[:, None] * x[None, :]), VECTOR) == 4_000 + 4

    def outer(x, y):  # what the product is made from stays until the product is read: x @ y, and its place is not taken
        return jnp.sin(x @ y) @ y

    assert peak_bytes(outer, SQUARE, SQUARE) == 4 * 40_000

    def read_twice(x):
        once = jnp.sin(x)
        return jnp.sum(jnp.exp(once)) + jnp.sum(jnp.cos(once))

    assert 8_000 <= peak_bytes(read_twice, VECTOR) <= 8_000 + 3 * 4


def test_reshaping_takes_no_memory_and_transposing_for_a_product_does():
    assert peak_bytes(lambda x: jnp.sort(x.reshape(10_000)), SQUARE) == 2 * 40_000
    assert peak_bytes(lambda x: jnp.sort(x.T), SQUARE) == 3 * 40_000


def test_what_nobody_reads_is_not_computed():
    def wasteful(x, w):
        _ = chain(jnp.outer(x, x), w)
        return jnp.sort(x)

    assert peak_bytes(wasteful, VECTOR, jax.ShapeDtypeStruct((1000, 1000), jnp.float32)) == 4_000_000 + 8_000


def test_the_width_of_numbers_counts_and_keys_are_counted():
    half = jax.ShapeDtypeStruct((1000,), jnp.bfloat16)
    assert peak_bytes(jnp.sort, half) == 4_000
    assert peak_bytes(lambda key: jax.random.bits(key, (1000,)), jax.eval_shape(jax.random.key, 0)) == 4_000 + 8


def test_arrays_and_shapes_give_the_same_answer():
    array = jnp.ones((100, 100))
    assert peak_bytes(chain, array, array) == peak_bytes(chain, SQUARE, SQUARE)


def test_calls_are_laid_open():
    def softened(x, w):
        return jnp.sum(jax.nn.silu(chain(x, w)))

    plain = peak_bytes(softened, SQUARE, SQUARE)
    assert plain == 4 * 40_000
    assert peak_bytes(jax.jit(softened), SQUARE, SQUARE) == plain
    assert peak_bytes(lambda x, w: jax.jit(softened)(x, w) + jax.jit(softened)(w, x), SQUARE, SQUARE) == plain + 4
    assert peak_bytes(jax.checkpoint(softened), SQUARE, SQUARE) == plain


def test_remat_drops_what_the_backward_pass_can_compute_again():
    def block(x, w):
        return jnp.tanh(jnp.tanh(jnp.tanh(x @ w) @ w) @ w)

    def loss(x, weights, wrap):
        for w in weights:
            x = wrap(block)(x, w)
        return jnp.sum(x)

    gradient, weights = jax.grad(loss), [SQUARE] * 8
    kept = peak_bytes(partial(gradient, wrap=lambda f: f), SQUARE, weights)
    dropped = peak_bytes(partial(gradient, wrap=jax.checkpoint), SQUARE, weights)
    assert kept >= (9 + 24) * 40_000  # the inputs, and every layer's output
    assert dropped <= (9 + 8 + 6) * 40_000  # the inputs, every block's output, and one block in full
    undone = peak_bytes(partial(gradient, wrap=jax.checkpoint), SQUARE, weights, remat=False)
    assert undone == pytest.approx(kept, rel=0.05)


# -------------------------------------------------------------------------------------------------------------- loops, branches


def loop(x, w, length):
    return jax.lax.scan(lambda carry, _: (chain(carry, w), None), x, None, length=length)[0]


def test_a_loop_does_not_count_its_body_once_per_round():
    short, long = (peak_bytes(partial(loop, length=length), SQUARE, SQUARE) for length in (2, 1000))
    assert short == long
    assert 4 * 40_000 <= short <= 6 * 40_000


def test_what_a_loop_collects_is_counted_in_full():
    def collect(x, w, length):
        return jax.lax.scan(lambda carry, _: (carry @ w, jnp.sum(carry, axis=0)), x, None, length=length)

    short, long = (peak_bytes(partial(collect, length=length), SQUARE, SQUARE) for length in (10, 1010))
    assert long - short == 1000 * 400


def test_the_residuals_of_a_loop_are_counted_in_full_and_remat_drops_them():
    def loss(x, w, length, wrap):
        body = wrap(lambda carry, _: (jnp.tanh(jnp.tanh(carry @ w) @ w), None))
        return jnp.sum(jax.lax.scan(body, x, None, length=length)[0])

    def growth(wrap):
        gradient = jax.grad(loss, argnums=1)
        short, long = (peak_bytes(partial(gradient, length=n, wrap=wrap), SQUARE, SQUARE) for n in (10, 20))
        return (long - short) / (10 * 40_000)

    assert growth(lambda f: f) >= 2
    assert growth(jax.checkpoint) == 1  # the carries alone


def test_a_while_loop_and_the_largest_branch():
    def until_large(x, w):
        return jax.lax.while_loop(lambda carry: jnp.sum(carry) < 9, lambda carry: chain(carry, w), x)

    assert 4 * 40_000 <= peak_bytes(until_large, SQUARE, SQUARE) <= 6 * 40_000

    def choose(large, x, w):
        return jax.lax.cond(large, lambda: jnp.sum(chain(jnp.tile(x, (2, 1)), w)), lambda: jnp.sum(x))

    condition = jax.ShapeDtypeStruct((), bool)
    assert 6 * 40_000 <= peak_bytes(choose, condition, SQUARE, SQUARE) <= 6 * 40_000 + 100


def test_inside_shard_map_one_device_is_counted():
    mesh = data_mesh()
    cut, whole = PartitionSpec(BATCH_AXIS), PartitionSpec()
    rows, w = jax.ShapeDtypeStruct((800, 100), jnp.float32), SQUARE
    mapped = jax.shard_map(lambda x, w: chain(x, w), mesh=mesh, in_specs=(cut, whole), out_specs=cut)
    outside = 2 * 320_000 + 40_000
    assert peak_bytes(mapped, rows, w) == outside + 2 * 40_000


# ------------------------------------------------------------------------------------------------- training steps, against XLA

NETWORKS = {
    "mlp": (MLP(width=64, depth=2), (30,)),
    "dit": (DiT(hidden=64, depth=2, heads=4, patch_size=4), (28, 28, 1)),
    "unet": (UNet(channels=16, multipliers=(1, 2), blocks=1, attention=(2,), head_channels=16), (16, 16, 1)),
}
OPTIMIZER = training.adam(1e-3, num_steps=100)


def inputs_for(sample_shape):
    return jax.ShapeDtypeStruct((1, *sample_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)


def needed_by(network, sample_shape, batch_size, **options):
    loss = training.simple_loss(network)
    inputs = inputs_for(sample_shape)
    options = dict(loss=loss, optimizer=OPTIMIZER, batch_size=batch_size) | options
    return training_bytes(network, sample_shape, SCHEDULE, inputs, **options)


def abstract_step(network, sample_shape, batch_size):
    """``(step, its abstract arguments)``, independent of the module under test."""
    step = partial(training.train_step, loss=training.simple_loss(network), optimizer=OPTIMIZER)
    init = partial(training.init_state, jax.random.key(0), network, OPTIMIZER)
    state = jax.eval_shape(init, *inputs_for(sample_shape))
    schedule = jax.eval_shape(lambda: SCHEDULE.to(jnp.float32))
    return step, (state, jax.ShapeDtypeStruct((batch_size, *sample_shape), jnp.float32), schedule)


def planned_by_xla(network, sample_shape, batch_size, donate=True):
    step, arguments = abstract_step(network, sample_shape, batch_size)
    compiled = jax.jit(step, donate_argnums=0 if donate else ()).lower(*arguments).compile()
    plan = compiled.memory_analysis()
    size = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return size - plan.alias_size_in_bytes


@pytest.mark.parametrize("batch_size", [16, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "unet" else n for n in NETWORKS])
def test_a_training_step_needs_what_xla_plans(name, batch_size):
    network, sample_shape = NETWORKS[name]
    ratio = needed_by(network, sample_shape, 64).bytes(batch_size) / planned_by_xla(network, sample_shape, batch_size)
    assert 0.75 < ratio < 1.25


def test_without_donation_there_are_two_states():
    network, sample_shape = NETWORKS["mlp"]
    step, arguments = abstract_step(network, sample_shape, 16)
    ratio = peak_bytes(step, *arguments) / planned_by_xla(network, sample_shape, 16, donate=False)
    assert 0.75 < ratio < 1.25
    state = sum(np.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(arguments[0]))
    assert peak_bytes(step, *arguments) - peak_bytes(step, *arguments, donate_argnums=0) > 0.5 * state


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "unet")) for name in NETWORKS])
def test_the_need_grows_linearly_with_the_batch_and_the_line_is_never_below_it(name):
    network, sample_shape = NETWORKS[name]
    needed = needed_by(network, sample_shape, 256)
    assert needed.per_row > 0
    for batch_size in (8, 64, 256):
        step, arguments = abstract_step(network, sample_shape, batch_size)
        peak = peak_bytes(step, *arguments, donate_argnums=0)
        assert peak <= needed.bytes(batch_size) + 1
        assert needed.bytes(batch_size) == pytest.approx(peak, rel=0.15)
    assert needed.bytes(256) == peak


def test_a_small_batch_is_asked_for_too():
    network, sample_shape = NETWORKS["dit"]
    assert needed_by(network, sample_shape, 1) == needed_by(network, sample_shape, 16)
    assert 0 < needed_by(network, sample_shape, 1).bytes(1) < needed_by(network, sample_shape, 16).bytes(8)


@pytest.mark.slow
def test_remat_saves_memory_unless_the_device_undoes_it():
    deep = partial(DiT, hidden=64, depth=5, heads=4, patch_size=4)
    plain = needed_by(deep(), (28, 28, 1), 64).per_row
    assert needed_by(deep(remat=True), (28, 28, 1), 64).per_row < 0.4 * plain
    assert needed_by(deep(remat=True), (28, 28, 1), 64, remat=False).per_row == pytest.approx(plain, rel=0.05)


@pytest.mark.slow
def test_a_cpu_saves_nothing_with_remat():
    # When this fails XLA has learned it: then remat=False is wrong for CPUs, and the docstring of peak_bytes too.
    sizes = [
        planned_by_xla(DiT(hidden=32, depth=3, heads=2, patch_size=4, remat=remat), (16, 16, 1), 64)
        for remat in (False, True)
    ]
    assert sizes[1] > 0.8 * sizes[0]


def test_a_network_that_no_machine_holds_is_judged_without_allocating_it():
    before = len(jax.live_arrays())
    network = MLP(width=200_000, depth=2)
    needed = needed_by(network, (30,), 128)
    parameters = 2 * 2 * 200_000 * 400_000
    assert needed.fixed > 4 * 4 * parameters  # float32: parameters, average, and two moments of the optimizer
    assert len(jax.live_arrays()) == before


def test_the_second_question_is_answered_from_memory():
    network, sample_shape = NETWORKS["mlp"]
    traces = []

    def loss(key, params, x, schedule, **options):
        traces.append(x.shape)
        return training.simple_loss(network)(key, params, x, schedule, **options)

    first = needed_by(network, sample_shape, 32, loss=loss)
    assert [shape[0] for shape in traces] == [8, 32]
    assert needed_by(network, sample_shape, 32, loss=loss) == first
    assert len(traces) == 2


# --------------------------------------------------------------------------------------------------------------- free memory


def test_this_machine_has_some_memory_left():
    assert GIB < available_bytes() < 64 * GIB
    assert available_bytes(jax.devices()[-1]) == pytest.approx(available_bytes(), rel=0.2)


@pytest.mark.parametrize(
    ("stats", "free"),
    [
        ({"bytes_limit": 1000, "bytes_in_use": 300, "peak_bytes_in_use": 900}, 700),
        ({"bytes_limit": 1000, "bytes_in_use": 1200}, 0),
        ({"bytes_in_use": 300}, None),
        ({"bytes_limit": 300}, None),
        ({}, None),
        (None, None),
    ],
)
def test_an_accelerator_is_asked_for_its_own_memory(stats, free):
    assert available_bytes(SimpleNamespace(platform="gpu", memory_stats=lambda: stats)) == free


MEMINFO = (
    "MemTotal:       24683656 kB\nMemFree:         1000 kB\nMemAvailable:     8000000 kB\nHugePages_Total:       0\n"
)


@pytest.fixture
def machine(tmp_path):
    """``machine(files) -> free bytes`` of a Linux machine that has the given files."""

    def free(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return memory._host_bytes(tmp_path / "proc", tmp_path / "cgroup")

    return free


def test_without_linux_nothing_is_known(machine):
    assert machine({}) is None
    assert machine({"proc/meminfo": "MemTotal: 5 kB\n"}) is None  # kernels before 3.14


def test_the_kernel_says_what_is_available(machine):
    assert machine({"proc/meminfo": MEMINFO}) == 8_000_000 * 1024


UNIFIED = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/batch/job\n"}


def test_a_control_group_of_version_two(machine):
    files = {"cgroup/batch/job/memory.max": "1000000\n", "cgroup/batch/job/memory.current": "400000\n"}
    assert machine(UNIFIED | files) == 600_000
    # Pages of files that were read once are only kept at hand.
    stat = {"cgroup/batch/job/memory.stat": "anon 100000\nfile 300000\ninactive_file 100000\nactive_file 50000\n"}
    assert machine(stat) == 750_000
    assert machine({"cgroup/batch/job/memory.current": "1300000\n"}) == 0
    assert machine({"cgroup/batch/job/memory.max": "max\n"}) == 8_000_000 * 1024


def test_a_group_is_bound_by_those_above_it(machine):
    own = {"cgroup/batch/job/memory.max": "1000000\n", "cgroup/batch/job/memory.current": "400000\n"}
    above = {"cgroup/batch/memory.max": "900000\n", "cgroup/batch/memory.current": "500000\n"}
    assert machine(UNIFIED | own | above) == 400_000
    # What lies beside the tree of groups is none.
    assert machine({"memory.max": "10\n", "memory.current": "0\n"}) == 400_000


def test_inside_a_container_the_own_group_lies_at_the_root(machine):
    files = {"cgroup/memory.max": "1000000\n", "cgroup/memory.current": "400000\n"}
    assert machine(UNIFIED | {"proc/self/cgroup": "0::/\n"} | files) == 600_000
    assert machine({"proc/self/cgroup": "0::/not/visible/here\n"}) == 600_000


def test_a_control_group_of_version_one(machine):
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "9:name=systemd:/a\n5:cpu,memory:/job\n1:cpuset:/job\n0::/\n",
        "cgroup/memory/job/memory.limit_in_bytes": "1000000\n",
        "cgroup/memory/job/memory.usage_in_bytes": "400000\n",
        "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "cgroup/memory/memory.usage_in_bytes": "5000000\n",
        "cgroup/memory/job/memory.stat": "inactive_file 9\ntotal_inactive_file 100000\ntotal_active_file 0\n",
    }
    assert machine(files) == 700_000
    assert machine({"cgroup/memory/job/memory.limit_in_bytes": "9223372036854771712\n"}) == 8_000_000 * 1024


# ------------------------------------------------------------------------------------------------------------------ does it fit


def test_a_batch_that_fits_to_the_byte_passes_and_one_byte_less_does_not():
    needed = Needed(fixed=1000, per_row=10)
    check_batch(needed, 64, 1640)
    check_batch((1000, 10), 64, 1640)  # any pair will do
    with pytest.raises(ValueError, match="choose at most batch_size=32"):
        check_batch(needed, 64, 1639)


def test_the_message_says_what_is_needed_what_is_there_and_what_to_do():
    with pytest.raises(ValueError, match=r"^training ") as caught:
        check_batch((1.2 * GIB, 0.01 * GIB), 4096, 22 * GIB + 1)
    assert str(caught.value) == (
        "training with batch_size=4096 needs about 42.2 GiB, 22.0 GiB are free: choose at most batch_size=2048, "
        "smaller pictures, a smaller network or, on an accelerator, remat"
    )
    with pytest.raises(ValueError, match=r"^scoring with batch_size=64 needs about 64[.]0 MiB, 10[.]5 MiB are free: "):
        check_batch((0, 2**20), 64, int(10.5 * 2**20), what="scoring")


@pytest.mark.parametrize("available", [1010, 1019, 1020, 1039, 1040, 1100, 1639])
def test_the_batch_that_is_proposed_fits_and_its_double_does_not(available):
    with pytest.raises(ValueError, match="choose at most batch_size=") as caught:
        check_batch((1000, 10), 64, available)
    proposed = int(str(caught.value).split("choose at most batch_size=")[1].split(",")[0])
    check_batch((1000, 10), proposed, available)
    with pytest.raises(ValueError, match="choose at most batch_size="):
        check_batch((1000, 10), 2 * proposed, available)


@pytest.mark.parametrize("needed", [(1000, 10), (1000, 0), (0, 1010)])
def test_where_not_even_one_row_fits_no_batch_is_proposed(needed):
    message = "not even batch_size=1 fits, choose smaller pictures, a smaller network or, on an accelerator, remat$"
    for batch_size in (1, 64):
        with pytest.raises(ValueError, match=message):
            check_batch(needed, batch_size, 999)


def test_where_free_memory_is_unknown_nothing_is_checked():
    check_batch((1e30, 1e30), 4096, None)
