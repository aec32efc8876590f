"""The two that people use in Node, for comparison."""
