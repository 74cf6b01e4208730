"""The selective scan on CUDA, in Triton: same function as `core.ops.selective_scan`.

One warp owns 32 channels and walks through time. A lane keeps all N states of its channel in registers, so
the sum over N costs nothing and the forward exchanges nothing:

    time ->      border         border         border
    channels  |  h0 -> s s s s -> s s s s -> s s s s -> last     one warp: 32 channels x N states
    0 .. 31   |        y y y y    y y y y    y y y y
    32 .. 63  |  h0 -> s s s s -> ...                            the next warp

What bounds the work is one exponential a state and step; everything else is arranged to stay in its shadow.

- B and C are the same for all channels: a small kernel before the scan spells them out as float32 rows, so
  that the scan reads four values at a time and unpacks nothing.
- When gradients are wanted the forward keeps the state before every SPAN steps (a border), for bfloat16
  inputs in bfloat16: they are used for gradients only. The backward recomputes the states in between.
- dB and dC are sums over channels, across lanes. A lane holds 2N values; an exchange that halves the list at
  each step needs 2N - 1 exchanges where plain reductions need 10 N. For 16-bit inputs the tensor cores do
  most of it. Every warp writes its share; one kernel at the end adds all shares in a fixed order.
- Long texts in few channels leave the chip idle, so time is cut into chunks: each computes its own last state
  from zero, a short scan carries them on, and only then the chunks run with their true entry. Likewise
  backwards.

Inside, states are (..., N, D), channels innermost. Sources: arXiv 2312.00752 (the recurrence, and to
recompute it), arXiv 2405.21060 section 6 (states of chunks passed on).

    operator.py          what the rest of the program calls, and what torch.compile sees
    layout.py            how a scan is laid over the chip: plans and tuned numbers
    launch.py            tensors made and kernels launched, in order
    forward_kernels.py, backward_kernels.py, shared_kernels.py, warp_sums.py
"""
