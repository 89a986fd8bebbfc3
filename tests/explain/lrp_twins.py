"""Rules of relevance propagation in float64 loops, over the matrix of a layer's weights: one connection at a time.

M[i, j]   weight from input i to output j        b[j]   bias
"""

import numpy as np


def conv_matrix(kernel, bias, rows, columns, stride, padding):
    """The matrix of a convolution over [rows, columns, C] images, inputs and outputs flattened in row-major order."""
    height, width, channels_in, channels_out = kernel.shape
    out_rows = (rows + 2 * padding - height) // stride + 1
    out_columns = (columns + 2 * padding - width) // stride + 1
    M = np.zeros((rows, columns, channels_in, out_rows, out_columns, channels_out))
    for p in range(out_rows):
        for q in range(out_columns):
            for dy in range(height):
                for dx in range(width):
                    y, x = p * stride + dy - padding, q * stride + dx - padding
                    if 0 <= y < rows and 0 <= x < columns:
                        M[y, x, :, p, q, :] += kernel[dy, dx]
    M = M.reshape(rows * columns * channels_in, -1)
    return M, np.tile(np.asarray(bias, float), out_rows * out_columns)


def ratio(a, b):
    return 0.0 if b == 0 else a / b


def shares(contributions, normaliser, R):
    """R_i = sum over j of contributions[i, j] * R[j] / normaliser[j]."""
    out = np.zeros(contributions.shape[0])
    for i in range(contributions.shape[0]):
        for j in range(contributions.shape[1]):
            out[i] += contributions[i, j] * ratio(R[j], normaliser[j])
    return out


def outer(x, M):
    return np.array([[x[i] * M[i, j] for j in range(M.shape[1])] for i in range(M.shape[0])])


def zero(x, M, b, R):
    c = outer(x, M)
    return shares(c, c.sum(0) + b, R)


def epsilon(x, M, b, R, eps=1e-6):
    c = outer(x, M)
    z = c.sum(0) + b
    return shares(c, z + eps * np.where(z < 0, -1, 1), R)


def gamma(x, M, b, R, gamma=0.25):
    return epsilon(x, M + gamma * np.maximum(M, 0), b + gamma * np.maximum(b, 0), R)


def alpha_beta(x, M, b, R, alpha=2.0, beta=1.0):
    c = outer(x, M)
    up, down = np.maximum(c, 0), np.minimum(c, 0)
    out = alpha * shares(up, up.sum(0) + np.maximum(b, 0), R)
    return out - beta * shares(down, down.sum(0) + np.minimum(b, 0), R)


def z_plus(x, M, b, R):
    return alpha_beta(x, M, b, R, 1.0, 0.0)


def z_box(x, M, b, R, low=-1.0, high=1.0):
    c = outer(x, M) - low * np.maximum(M, 0) - high * np.minimum(M, 0)
    return shares(c, c.sum(0) + 1e-9, R)


def z_box_of_image(x, M, b, R):
    return z_box(x, M, b, R, x.min(), x.max())


def flat(x, M, b, R):
    c = (M != 0).astype(float)
    return shares(c, c.sum(0), R)


def w_square(x, M, b, R):
    c = M**2
    return shares(c, c.sum(0), R)


def focus_dense(x, M, b, R):
    c = outer(x, M)
    z = c.sum(0)
    return shares(c, z + 0.25 * np.sqrt(np.mean(z**2)), R)


def focus_conv(x, M, b, R):
    up = outer(np.maximum(x, 0), np.maximum(M, 0))
    down = outer(np.minimum(x, 0), np.minimum(M, 0))
    return shares(up, up.sum(0), R) + shares(down, down.sum(0), R)


def absorbing(x, a, b, R):
    return np.array([ratio(xi * ai * Ri, xi * ai + abs(bi) * np.sign(xi * ai)) for xi, ai, bi, Ri in zip(x, a, b, R)])


def residual(first, second, R):
    out = np.array([[ratio(a * r, a + b), ratio(b * r, a + b)] for a, b, r in zip(first, second, R)])
    return out[:, 0], out[:, 1]


def max_pool(x, R, window):
    """One channel, windows beside each other; the winner takes all."""
    out = np.zeros_like(x)
    for p in range(R.shape[0]):
        for q in range(R.shape[1]):
            patch = x[p * window : (p + 1) * window, q * window : (q + 1) * window]
            dy, dx = np.unravel_index(np.argmax(patch), patch.shape)
            out[p * window + dy, q * window + dx] = R[p, q] if patch.max() != 0 else 0
    return out


def avg_pool(x, R, window):
    out = np.zeros_like(x)
    for p in range(R.shape[0]):
        for q in range(R.shape[1]):
            total = x[p * window : (p + 1) * window, q * window : (q + 1) * window].sum()
            for y in range(p * window, (p + 1) * window):
                for z in range(q * window, (q + 1) * window):
                    out[y, z] = x[y, z] * ratio(R[p, q], total)
    return out


def softmax(x, R):
    s = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    return np.array([x[i] * (R[i] - s[i] * R.sum()) for i in range(len(x))])


def matmul(A, V, R, eps=1e-6):
    """Half of the relevance of O = A V to each factor, in proportion to its contributions."""
    O = A @ V
    to_A, to_V = np.zeros_like(A), np.zeros_like(V)
    for t in range(O.shape[0]):
        for k in range(O.shape[1]):
            s = R[t, k] / (2 * (O[t, k] + eps * (-1 if O[t, k] < 0 else 1)))
            for u in range(V.shape[0]):
                to_A[t, u] += A[t, u] * V[u, k] * s
                to_V[u, k] += A[t, u] * V[u, k] * s
    return to_A, to_V
