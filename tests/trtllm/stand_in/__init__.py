"""A strict stand-in for `tensorrt_llm.bindings.executor` 1.2.1, generated from the table of its API.

Signatures, keyword-only rules, defaults, enums and attribute names are the table's, and other names are refused. The
executor behind it follows the loop of the public C++ (executorImpl.cpp) over a model that is a hash of its context.
"""
