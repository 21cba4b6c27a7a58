"""Reading a pickle as data: objects are made from an explicit table, and nothing is ever imported.

Python's unpickler imports what a file names and calls it. :class:`PickleReader` interprets the instructions
that :func:`pickletools.genops` parses, and knows only the constructors that it is given.
"""
import pickletools
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from ..errors import escaped, one_line

MAX_INSTRUCTIONS = 1_000_000
"""The training checkpoint of a Faster R-CNN with R-50, EMA and AdamW has 47,000."""
MAX_DEPTH = 100
"""Containers inside containers; readers of the loaded data may be recursive."""
MAX_KEYS = 10_000
"""Keys that are not text; a file can choose numbers with equal hashes, which makes dicts quadratic."""
SLACK = 2**24
"""Bytes that constructors may copy, and that repeated values may add, beyond the length of the pickle."""

Constructor = Callable[['PickleReader', tuple], Any]


class RefusedError(ValueError):
    """A file refers to something outside the allowlist."""


class BrokenError(ValueError):
    """A file is damaged, or would take more time or memory than its size justifies."""


class Name:
    """A class or function that a file names, which is not imported.

    Args:
        module: The module as the file spells it.
        name: The name in that module, which may have dots.
    """

    def __init__(self, module: str, name: str) -> None:
        self.key = (module, name)

    def __str__(self) -> str:
        return escaped('.'.join(self.key))


class _Mark:
    """Separates the arguments of an instruction on the stack."""


_MARK = _Mark()
_DICTS = (dict, OrderedDict, Counter, defaultdict)
_PUSHED = (
    'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'FLOAT', 'BINFLOAT', 'UNICODE', 'BINUNICODE',
    'SHORT_BINUNICODE', 'BINUNICODE8', 'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8')
"""Instructions that push their argument."""
_METHODS = {name: f'_{name.lower()}' for name in (
    'MARK', 'POP', 'POP_MARK', 'DUP', 'MEMOIZE', 'APPEND', 'APPENDS', 'LIST', 'TUPLE', 'TUPLE1', 'TUPLE2',
    'TUPLE3', 'DICT', 'SETITEM', 'SETITEMS', 'ADDITEMS', 'FROZENSET', 'GLOBAL', 'STACK_GLOBAL', 'REDUCE',
    'BUILD', 'BINPERSID', 'NONE', 'NEWTRUE', 'NEWFALSE', 'EMPTY_DICT', 'EMPTY_LIST', 'EMPTY_SET',
    'EMPTY_TUPLE')}
_METHODS |= dict.fromkeys(('PUT', 'BINPUT', 'LONG_BINPUT'), '_put')
_METHODS |= dict.fromkeys(('GET', 'BINGET', 'LONG_BINGET'), '_get')
_METHODS |= dict.fromkeys(('STRING', 'BINSTRING', 'SHORT_BINSTRING'), '_text_of_python_2')
_METHODS |= dict.fromkeys(('PROTO', 'FRAME', 'STOP'), '_nothing')
_METHODS |= dict(NEWOBJ='_reduce')
_METHODS |= dict.fromkeys(_PUSHED, '_push')
"""By instruction: the method that executes it."""


class PickleReader:
    """Reads one pickle after another from a file.

    Args:
        file: The file; read from its current position.
        size: The number of bytes in the file that may belong to pickles.
        tensor_bytes: The size of all tensors together, at most.
        values: What the names in a file stand for where they are values, such as ``torch.float32``.
        constructors: What the names in a file stand for where they are called.
        states: Functions that give a state to an object, by the type of the object.
        find_storage: Function that returns the storage of a persistent id.
    """

    def __init__(self, file: BinaryIO, size: int, tensor_bytes: int, values: dict[tuple[str, str], Any],
                 constructors: dict[tuple[str, str], Constructor], states: dict[type, Callable],
                 find_storage: Callable[[Any], Any]) -> None:
        self._file, self._size = file, size
        self._values, self._constructors, self._states = values, constructors, states
        self._find_storage = find_storage
        self._budget, self._tensor_budget = size + SLACK, tensor_bytes
        self._num_instructions = 0
        self._num_keys = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._actions = {name: getattr(self, method) for name, method in _METHODS.items()}

    def read(self) -> Any:
        """Read the next pickle.

        Returns:
            The value: plain data, and what the constructors have made.

        Raises:
            RefusedError: If the pickle names something unknown.
            BrokenError: If the pickle is malformed or exceeds a limit.
        """
        self._stack, self._memo = [], {}
        try:
            for opcode, argument, _ in pickletools.genops(self._file):
                self._num_instructions += 1
                action = self._actions.get(opcode.name)
                if action is None:
                    raise RefusedError(f'the pickle instruction {opcode.name}')
                if self._num_instructions > MAX_INSTRUCTIONS:
                    raise BrokenError(f'it has more than {MAX_INSTRUCTIONS} pickle instructions')
                action(argument)
            (value, ) = self._stack
        except (BrokenError, RefusedError):
            raise
        except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise BrokenError(f'its pickle is malformed, {one_line(error)}') from None
        self._check_structure(value)
        return value

    def spend(self, number: int) -> None:
        """Account for a copy of ``number`` bytes, or of objects of about that size.

        Raises:
            BrokenError: If the copies of all constructors exceed what the size of the file justifies.
        """
        self._budget -= number
        if self._budget < 0:
            raise BrokenError('its data would be much larger than the file')

    def spend_tensor(self, number: int) -> None:
        """Account for a tensor of ``number`` bytes, which it takes at the latest when it is copied.

        Raises:
            BrokenError: If all tensors together exceed what the size of the file justifies.
        """
        self._tensor_budget -= number
        if self._tensor_budget < 0:
            raise BrokenError('its tensors would be much larger than the file')

    def check_keys(self, keys: Any) -> None:
        """Check that values may become keys of a dict, or members of a set.

        Raises:
            BrokenError: If hashing them may take long.
        """
        for key in keys:
            if type(key) in (str, bytes):
                continue
            self._num_keys += 1
            if self._num_keys > MAX_KEYS:
                raise BrokenError(f'it has more than {MAX_KEYS} keys that are not text')
            for part in key if type(key) is tuple and len(key) <= 16 else (key, ):
                if type(part) not in (str, bytes, int, float, bool, type(None)) or (
                        type(part) is int and abs(part) >= 2**60):
                    raise BrokenError(f'a {type(part).__name__} is a key')

    def update(self, mapping: dict, keys: list, values: list) -> None:
        """Add items to a dict."""
        self.check_keys(keys)
        mapping.update(zip(keys, values, strict=True))

    def _marked(self) -> list:
        """Remove all values above the last mark, and the mark, from the stack."""
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    # One method for each instruction

    def _nothing(self, _: Any) -> None:
        pass

    def _push(self, argument: Any) -> None:
        self._stack.append(argument)

    def _text_of_python_2(self, argument: str) -> None:
        self._stack.append(argument.encode('latin-1').decode('utf-8'))

    def _none(self, _: Any) -> None:
        self._stack.append(None)

    def _newtrue(self, _: Any) -> None:
        self._stack.append(True)

    def _newfalse(self, _: Any) -> None:
        self._stack.append(False)

    def _empty_dict(self, _: Any) -> None:
        self._stack.append({})

    def _empty_list(self, _: Any) -> None:
        self._stack.append([])

    def _empty_set(self, _: Any) -> None:
        self._stack.append(set())

    def _empty_tuple(self, _: Any) -> None:
        self._stack.append(())

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _tuple1(self, _: Any) -> None:
        self._stack[-1] = (self._stack[-1], )

    def _tuple2(self, _: Any) -> None:
        last, first = self._stack.pop(), self._stack.pop()
        self._stack.append((first, last))

    def _tuple3(self, _: Any) -> None:
        last, middle, first = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._stack.append((first, middle, last))

    def _mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        self._stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._marked()

    def _dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _append(self, _: Any) -> None:
        self._extend([self._stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._marked())

    def _extend(self, items: list) -> None:
        if type(self._stack[-1]) is not list:
            raise TypeError
        self._stack[-1].extend(items)

    def _list(self, _: Any) -> None:
        self._stack.append(self._marked())

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._marked()))

    def _dict(self, _: Any) -> None:
        items = self._marked()
        self._stack.append({})
        self._set_items(items)

    def _setitem(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _setitems(self, _: Any) -> None:
        self._set_items(self._marked())

    def _set_items(self, items: list) -> None:
        if type(self._stack[-1]) not in _DICTS:
            raise TypeError
        self.update(self._stack[-1], items[::2], items[1::2])

    def _additems(self, _: Any) -> None:
        items = self._marked()
        self.check_keys(items)
        if type(self._stack[-1]) is not set:
            raise TypeError
        self._stack[-1].update(items)

    def _frozenset(self, _: Any) -> None:
        items = self._marked()
        self.check_keys(items)
        self._stack.append(frozenset(items))

    def _global(self, argument: str) -> None:
        self._push_name(*argument.split(' ', 1))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError
        self._push_name(module, name)

    def _push_name(self, module: str, name: str) -> None:
        key = (module, name)
        if key in self._values:
            self._stack.append(self._values[key])
        elif key in self._constructors:
            self._stack.append(Name(module, name))
        else:
            raise RefusedError(str(Name(module, name)))

    def _reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(function) is not Name or type(arguments) is not tuple:
            raise RefusedError(f'a call of a {type(function).__name__}')
        self._stack.append(self._constructors[function.key](self, arguments))

    def _build(self, _: Any) -> None:
        state, owner = self._stack.pop(), self._stack[-1]
        if type(owner) not in self._states:
            raise RefusedError(f'a state for {owner if type(owner) is Name else type(owner).__name__}')
        self._states[type(owner)](self, owner, state)

    def _binpersid(self, _: Any) -> None:
        self._stack.append(self._find_storage(self._stack.pop()))

    def _check_structure(self, value: Any) -> None:
        """Check depth and size, where what is contained several times counts several times."""
        self._sizes: dict[int, tuple[int, int] | None] = {}
        size, _ = self._measure(value, MAX_DEPTH)
        if size > self._size + SLACK:
            raise BrokenError('its data would be much larger than the file')

    def _measure(self, value: Any, depth: int) -> tuple[int, int]:
        """Return size and height of a value that may be at most ``depth`` high."""
        if type(value) in (str, bytes, bytearray):
            return len(value), 0
        if type(value) in (Name, _Mark):
            raise RefusedError(f'{value} as a value' if type(value) is Name else 'a mark')
        if type(value) not in (*_DICTS, list, tuple, set, frozenset):
            return 1, 0
        if id(value) not in self._sizes:
            if depth <= 0:
                raise BrokenError(f'its data is more than {MAX_DEPTH} levels deep')
            self._sizes[id(value)] = None
            size, height = 1, 0
            for item in _contents(value):
                item_size, item_height = self._measure(item, depth - 1)
                size, height = size + item_size, max(height, item_height + 1)
            self._sizes[id(value)] = (size, height)
        measured = self._sizes[id(value)]
        if measured is None:
            raise BrokenError('its data contains itself')
        if measured[1] > depth:
            raise BrokenError(f'its data is more than {MAX_DEPTH} levels deep')
        return measured


def _contents(value: Any) -> Iterator:
    if isinstance(value, dict):
        yield from value
        yield from value.values()
        yield from vars(value).values() if isinstance(value, OrderedDict) else ()
    else:
        yield from value
