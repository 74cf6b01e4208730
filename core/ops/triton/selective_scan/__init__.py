"""The selective scan on CUDA, in Triton: same function as `core.ops.selective_scan`.

One warp owns 32 channels and walks through time. A lane keeps all N states of its channel in registers, so
the sum over N costs nothing and lanes exchange nothing in the forward:

    time ->      border         border         border
    channels  |  h0 -> s s s s -> s s s s -> s s s s -> last     one warp: 32 channels x N states
    0 .. 31   |        y y y y    y y y y    y y y y
    32 .. 63  |  h0 -> s s s s -> ...                            the next warp

The limit is one exponential per state and step; everything else is arranged to overlap with it.

- B and C are the same for all channels. A small kernel before the scan converts them to rows of float32, so
  that the scan reads four values at a time and converts nothing.
- When gradients are wanted, the forward stores the state before every SPAN steps (a border); in bfloat16 for
  bfloat16 inputs, since only gradients use it. The backward recomputes the states in between.
- dB and dC are sums over channels, that is, across lanes. A lane holds 2N values; an exchange that halves the
  list at each step needs 2N - 1 exchanges, where plain reductions need 10 N. For 16-bit inputs the tensor
  cores do most of it. Every warp writes its share, and a kernel at the end adds all shares in a fixed order.
- Long texts with few channels would leave the chip idle, so time is cut into chunks: each chunk computes its
  last state starting from zero, a short scan carries the states across chunks, and then every chunk runs from
  its true first state. The same happens in the backward.

Inside, states are (..., N, D), channels innermost. Sources: arXiv 2312.00752 (the recurrence, and recomputing
it in the backward), arXiv 2405.21060 section 6 (passing states between chunks).

    operator.py          what the rest of the program calls, and what torch.compile sees
    layout.py            how a scan is divided among programs, and the tuned numbers
    launch.py            allocates tensors and launches the kernels in order
    forward_kernels.py, backward_kernels.py, shared_kernels.py, warp_sums.py
"""
