"""Where a body in chunks ends (RFC 9112, section 7.1), so that the parser gets no byte beyond it."""


class Chunks:
    """Follows the lengths that the chunks say they have. Whether they are well-formed is for the parser to say."""

    def __init__(self) -> None:
        self._left = 0  # bytes of the present chunk and its line's end
        self._line = b""  # the beginning of a line that is not complete yet
        self._last = False  # the last chunk is over: lines follow, up to an empty one

    def end(self, data: bytes | bytearray) -> int:
        """How many of the next bytes belong to the body."""
        position = 0
        while position < len(data):
            if self._left:
                step = min(self._left, len(data) - position)
                self._left -= step
                position += step
                continue
            stop = data.find(b"\n", position) + 1
            self._line += data[position : stop or len(data)]
            if not stop:
                break
            line, self._line, position = self._line.strip(b"\r\n"), b"", stop
            if self._last:
                if not line:
                    return position
            else:
                length = as_length(line)
                self._left, self._last = length + 2 if length else 0, not length
        return len(data)


def as_length(line: bytes) -> int:
    """Of a chunk, from its first line; 0 where the parser will refuse it."""
    try:
        return max(0, int(line.partition(b";")[0], 16))
    except ValueError:
        return 0
