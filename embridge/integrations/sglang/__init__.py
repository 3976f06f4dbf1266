"""embridge in SGLang: embeddings on their way from its encoders to its schedulers (SGLang 0.5.23).

SGLang finds `register` by the entry point `sglang.srt.plugins` in each process that serves. It does something where the
variable `EMBRIDGE_SGLANG` is set; docs/integrations/sglang.md has the rest. `rooms` has the classes for schedulers that
follow the scheme of the first documents. SGLang is imported when it asks for the plugin.
"""

from __future__ import annotations

from importlib import import_module

from embridge.integrations.sglang.options import is_wanted


def register() -> None:
    """Have SGLang's receivers and encoders in this process use embridge, if they are to.

    What is wrong with the options is said where the first of them is made, for SGLang goes on without a plugin that
    raises.
    """
    if is_wanted():
        import_module("embridge.integrations.sglang.plugin").install()
