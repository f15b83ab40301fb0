"""The paper's tables and figures about transformers: each runs the harness and sets its numbers beside the paper's."""
