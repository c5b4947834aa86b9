from tests.stack import make_stack, stack
from tests.two_brokers import make_two, two

__all__ = ["make_stack", "make_two", "stack", "two"]
