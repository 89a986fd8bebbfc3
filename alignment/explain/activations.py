"""Activations of a traced network that have rows and columns: where they end, what they are called, how they lie.

Networks without module names (plain JAX functions, flax.nnx, Equinox) have their activations numbered in order of
computation: "activation0", "activation1", ...  Dimensions: N images, I J rows and columns of a layer, C channels.
"""

from alignment.errors import InputError
from alignment.explain import graph

_LINEAR = {"add", "add_any", "sub", "neg", "convert_element_type", "copy", "stop_gradient", "reduce_precision"}
_NONLINEAR = {"max", "min", "tanh", "logistic", "erf", "exp", "log1p", "clamp", "integer_pow", "square", "abs"}
_NONLINEAR |= {"select_n", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "expm1", "log", "sqrt"}
_COMPARED = {"gt", "ge", "lt", "le", "ne", "eq", "sign"}
_ELEMENTWISE = _LINEAR | _NONLINEAR | _COMPARED | {"mul", "div"}


def after_nonlinearity(traced: graph.Graph, value: int) -> int:
    """The activation that a value becomes before anything but elementwise functions reads it; else the value.

    A convolution that is followed by relu as a function, perhaps with a norm's constants or a residual sum between
    them, ends in the output of the relu.
    """
    shape = traced.shapes[value].shape
    reached, last, is_bent = {value}, value, False
    equations = graph.needed(traced.equations, [traced.logits])
    for equation in equations:
        if reached.isdisjoint(equation.inputs) or value in equation.outputs:
            continue
        (output, *others) = equation.outputs
        # Only while the shape stays: a pool or a broadcast makes another map.
        if equation.op in _ELEMENTWISE and not others and traced.shapes[output].shape == shape:
            reached.add(output)
            last = output
            is_bent = is_bent or equation.op in _NONLINEAR
    # every way from the value to the logits must lead through the last one
    leaks = any(not reached.isdisjoint(set(e.inputs) - {last}) and reached.isdisjoint(e.outputs) for e in equations)
    return value if leaks or not is_bent or traced.logits in reached else last


def numbered(traced: graph.Graph) -> dict[str, int]:
    """Names -> the activations after convolutions, in order of computation."""
    ends = [
        after_nonlinearity(traced, equation.outputs[0])
        for equation in traced.equations
        if equation.op == "conv_general_dilated" and equation.reads_x and len(_shape(traced, equation.outputs[0])) == 4
    ]
    spatial = [end for end in dict.fromkeys(ends) if _shape(traced, end)[1] * _shape(traced, end)[2] > 1]
    return {f"activation{i}": end for i, end in enumerate(spatial)}


def check_grid(traced: graph.Graph, value: int, layer: str, height: int, width: int) -> None:
    """Refuses an activation that lies as [N, C, I, J].

    Raises:
        InputError: where the convolution that made it puts its channels second, or where rows and columns cannot be a
            grid over the image.
    """
    shape = _shape(traced, value)
    if len(shape) != 4:
        return
    rows, columns = shape[1:3]
    ratio = (height / rows) / (width / columns)
    # convolutions without padding take the same number of cells from both sides, so that small grids may be uneven
    is_uneven = max(ratio, 1 / ratio) > 1.5 and abs(rows * width / height - columns) > 2
    if _is_channels_first(traced, value) or is_uneven or (rows > height and columns > width):
        raise InputError(
            f"layer {layer or 'by default'} is {shape}, and its rows and columns must be axes 1 and 2 ([N, Y, X, C]) "
            f"of a grid over {height} x {width} pixels; return it with its channels last, such as "
            "(logits, {'feature': h.transpose(0, 2, 3, 1)}), and name that"
        )


def _is_channels_first(traced: graph.Graph, value: int) -> bool:
    """Whether the convolution that made it says so, with only elementwise steps and pools after it."""
    made = {output: equation for equation in traced.equations for output in equation.outputs}
    while value in made:
        equation = made[value]
        if equation.op == "conv_general_dilated":
            return equation.params["dimension_numbers"].out_spec[1] == 1
        if equation.op not in _ELEMENTWISE and not equation.op.startswith("reduce_window"):
            return False
        own = [v for v in equation.inputs if v in traced.reads_x and len(_shape(traced, v)) == 4]
        if not own:
            return False
        value = own[0]
    return False


def _shape(traced: graph.Graph, value: int) -> tuple[int, ...]:
    return traced.shapes[value].shape
