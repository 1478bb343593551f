"""A real ComfyUI for the tests, the demo and the benchmarks.

`InProcessHost` runs prompts inside this process, through ComfyUI's own executor: for looking at
what happens inside. `Server` is the server that users start, in a process of its own: for what
happens over HTTP and across restarts. Neither writes outside the folders it is given.
"""

from demo.host.in_process import InProcessHost, Run
from demo.host.outcome import HostError, Interrupted, Prompt, PromptRejected, RunFailed
from demo.host.server import Server

__all__ = ["HostError", "InProcessHost", "Interrupted", "Prompt", "PromptRejected", "Run",
           "RunFailed", "Server"]
