"""Complete `pix2seq` with the tab key: commands, options, names of tasks, recipes and checkpoints, files and folders.

examples:
  pix2seq completion bash > ~/.local/share/bash-completion/completions/pix2seq
  pix2seq completion zsh > ~/.zfunc/_pix2seq               (a folder of $fpath)
  pix2seq completion fish > ~/.config/fish/completions/pix2seq.fish
  source <(pix2seq completion bash)                        (a first look, for this shell only)

The script is made of the commands as they are now, and needs neither Python nor the package while it completes: make it
again after an update. New shells read it by themselves.
"""

import argparse
import importlib
import re
from collections.abc import Iterator
from typing import NamedTuple

SHELLS = ("bash", "zsh", "fish")
FOLDER_NAMES = ("DIR", "OUT", "RUN")
FILE_NAMES = ("FILE", "FILE.png", "DATA", "PICTURE", "PATH_OR_NAME", "WHICH")
MANY = ("+", "*")


class Option(NamedTuple):
    r"""An option or an argument of a command.

    Args:
        names (`tuple[str, ...]`): `--tasks`; empty for an argument.
        help (`str`): Its first words in the help.
        kind (`str`): What its value is: `"none"` (it has no value), `"words"`, `"list"` (words with commas), `"files"`,
            `"folders"`, or `"free"`, which nothing completes.
        words (`tuple[str, ...]`): What the value can be. Of `"files"`, in addition to these.
        is_many (`bool`): Whether several values follow."""

    names: tuple[str, ...]
    help: str
    kind: str
    words: tuple[str, ...] = ()
    is_many: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `pix2seq completion`."""
    parser.add_argument("shell", choices=SHELLS, help="for which shell")


def run(args: argparse.Namespace) -> int:
    """Print the script and return the exit code 0."""
    commands, overview = list_commands()
    write = {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}[args.shell]
    print(write(commands, overview), end="")
    return 0


def list_commands() -> tuple[dict[str, list[Option]], dict[str, dict[str, str]]]:
    r"""List what can be written after `pix2seq`.

    Returns:
        `tuple`: the options of every command, those of commands in commands as `data inspect`; and per prefix (empty,
        `data`) the commands that may follow, with their summaries."""
    from pix2seq_hf.cli import COMMANDS, build_parser

    overview = {"": {name: command.summary for name, command in COMMANDS.items()}}
    commands: dict[str, list[Option]] = {}
    for name, command in COMMANDS.items():
        for path, parser in _walk(name, build_parser(name, importlib.import_module(command.module))):
            commands[path] = [_describe(action) for action in parser._actions if not _has_commands(action)]
            for action in filter(_has_commands, parser._actions):
                overview[path] = {choice.dest: choice.help or "" for choice in action._choices_actions}
    return commands, overview


def _has_commands(action: argparse.Action) -> bool:
    return isinstance(action, argparse._SubParsersAction)


def _walk(path: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """A parser and those of the commands in it, with their names."""
    yield path, parser
    for action in filter(_has_commands, parser._actions):
        for name, inner in action.choices.items():
            yield from _walk(f"{path} {name}", inner)


def _describe(action: argparse.Action) -> Option:
    names, text = tuple(action.option_strings), (action.help or "").replace("%(default)s", str(action.default))
    text = re.split(r"[;:(]| such as ", text)[0].strip()
    if action.nargs == 0:
        return Option(names, text, "none")
    metavar, is_many = action.metavar or "", action.nargs in MANY
    if action.choices:
        return Option(names, text, "words", tuple(map(str, action.choices)), is_many)
    if action.dest == "tasks":
        return Option(names, text, "list", _tasks(), is_many)
    if action.dest in ("recipe", "name") and metavar == "NAME":
        return Option(names, text, "files", _recipes(), is_many)
    if action.dest == "checkpoint":
        return Option(names, text, "files", _checkpoints(), is_many)
    if metavar in FOLDER_NAMES:
        return Option(names, text, "folders", (), is_many)
    if metavar in FILE_NAMES:
        return Option(names, text, "files", (), is_many)
    return Option(names, text, "free", (), is_many)


def _tasks() -> tuple[str, ...]:
    from pix2seq_hf.processing_pix2seq import TASKS

    return ("all", *TASKS)


def _recipes() -> tuple[str, ...]:
    from pix2seq_hf.training.recipes_command import list_files

    return tuple(list_files())


def _checkpoints() -> tuple[str, ...]:
    from pix2seq_hf.conversion.released import RELEASED

    return tuple(RELEASED)


def _names(options: list[Option]) -> str:
    return " ".join(name for option in options for name in option.names)


BASH = """\
# Completion of pix2seq for bash, made by `pix2seq completion bash`
_pix2seq() {
    local current=${COMP_WORDS[COMP_CWORD]} word index options="" kind="" values=""
    local -a words=()
    for word in "${COMP_WORDS[@]:0:COMP_CWORD}"; do  # --tasks=a is three words for bash
        [[ $word == "=" ]] || words+=("$word")
    done
    [[ $current == "=" ]] && current=""
    COMPREPLY=()
    local command=${words[1]} start=2
    case "$command" in
@GROUPS@
    esac
    case "$command" in
@COMMANDS@
    esac
    for ((index = ${#words[@]} - 1; index >= start; index--)); do
        [[ ${words[index]} == -* ]] && break
    done
    # which option was written last, and how many words ago
    case "$command:${words[index]}:$((${#words[@]} - index))" in
@VALUES@
    esac
    [[ $current == -* ]] && kind=options
    case "$kind" in
        options) COMPREPLY=($(compgen -W "$options" -- "$current")) ;;
        words) COMPREPLY=($(compgen -W "$values" -- "$current")) ;;
        list)
            local before=""
            [[ $current == *,* ]] && before=${current%,*},
            COMPREPLY=($(compgen -P "$before" -W "$values" -- "${current##*,}"))
            compopt -o nospace 2>/dev/null
            ;;
        files)
            compopt -o filenames 2>/dev/null
            COMPREPLY=($(compgen -W "$values" -- "$current"))
            mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -f -- "$current")
            ;;
        folders)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -d -- "$current")
            ;;
    esac
}
complete -F _pix2seq pix2seq
"""


def bash_script(commands: dict[str, list[Option]], overview: dict[str, dict[str, str]]) -> str:
    """The script for bash."""
    groups = [f'        {name}) command="{name} ${{words[2]}}"; start=3 ;;' for name in overview if name]
    known, values = [], []
    for name, options in commands.items():
        if name in overview:  # nothing can stand here but one of its commands
            known.append(f'        "{name} ") values="{" ".join(overview[name])}" kind=words; options="--help" ;;')
            continue
        known.append(f'        "{name}") options="{_names(options)}" ;;')
        for option in options:
            end = f'values="{" ".join(option.words)}" kind={option.kind} ;;'
            if option.names and option.kind != "none":
                places = "*" if option.is_many else "1"
                pattern = "|".join(f'"{name}:{each}:"{places}' for each in option.names)
                values.append(f"        {pattern}) {end}")
        for option in options:  # of what is no value of an option, all places
            if not option.names:
                values.append(f'        "{name}:"*) values="{" ".join(option.words)}" kind={option.kind} ;;')
    top = f'        "") options="--help --version" values="{" ".join(overview[""])}" kind=words ;;'
    script = BASH.replace("@GROUPS@", "\n".join(groups)).replace("@COMMANDS@", "\n".join([top, *known]))
    return script.replace("@VALUES@", "\n".join(values))


def zsh_script(commands: dict[str, list[Option]], overview: dict[str, dict[str, str]]) -> str:
    """The script for zsh."""
    lines = ["#compdef pix2seq", "# Completion of pix2seq for zsh, made by `pix2seq completion zsh`", ""]
    for prefix in sorted(overview, reverse=True):  # the commands in commands come first
        lines += [f"{_zsh_name(prefix)}() {{", "    local -a commands=("]
        lines += [f"        {_quote(_zsh_words(name) + ':' + text)}" for name, text in overview[prefix].items()]
        lines += ["    )", "    if ((CURRENT == 2)); then", "        _describe command commands", "        return"]
        lines += ["    fi", "    shift words", "    ((CURRENT--))", '    case "$words[1]" in']
        for name in overview[prefix]:
            path = f"{prefix} {name}".strip()
            if path in overview:
                lines.append(f"        {name}) {_zsh_name(path)} ;;")
                continue
            specs = [spec for option in commands[path] for spec in _zsh_specs(option)]
            lines.append(f"        {name}) _arguments -s -S " + " ".join(specs) + " ;;")
        lines += ["    esac", "}", ""]
    lines += ["_pix2seq_or_files() {", '    compadd -- "$@"', "    _files", "}", ""]
    # Read from $fpath, the file is the body of the function; sourced, it must say what it completes.
    lines += ['if [[ "$funcstack[1]" == _pix2seq ]]; then', '    _pix2seq "$@"', "else"]
    lines += ["    compdef _pix2seq pix2seq", "fi"]
    return "\n".join(lines) + "\n"


def _zsh_name(prefix: str) -> str:
    return "_pix2seq" + (f"_{prefix.replace(' ', '_')}" if prefix else "")


def _zsh_words(text: str) -> str:
    return re.sub(r"([\[\]:\\])", r"\\\1", text)


def _zsh_specs(option: Option) -> list[str]:
    words = " ".join(option.words)
    action = {
        "none": "",
        "words": f"({words})",
        "list": f"_sequence compadd - {words}",
        "files": f" _pix2seq_or_files {words}" if words else "_files",
        "folders": "_files -/",
        "free": " ",
    }[option.kind]
    if not option.names:
        return [_quote(f"{'*' if option.is_many else ''}:{option.help.replace(':', '')}:{action}")]
    # An option may come again: none is taken away once it is written.
    value = f":value:{action}" if option.kind != "none" else ""
    if option.is_many:
        value = f":*-*{value}"
    return [_quote(f"*{name}[{_zsh_words(option.help)}]{value}") for name in option.names]


def fish_script(commands: dict[str, list[Option]], overview: dict[str, dict[str, str]]) -> str:
    """The script for fish."""
    lines = ["# Completion of pix2seq for fish, made by `pix2seq completion fish`", FISH, "complete -c pix2seq -f"]
    for prefix, names in overview.items():
        condition = f"-n '__pix2seq_is {prefix}'" if prefix else "-n '__pix2seq_is'"
        lines += [f"complete -c pix2seq {condition} -a {name} -d {_quote(text)}" for name, text in names.items()]
    for name, options in commands.items():
        if name in overview:
            continue
        condition = f"-n '__pix2seq_in {name}'"
        for option in options:
            words = _quote(" ".join(option.words))
            value = {
                "none": "",
                "words": f"-x -a {words}",
                "list": f"-x -a '(__fish_append , {' '.join(option.words)})'",
                "files": f"-r -F -a {words}" if option.words else "-r -F",
                "folders": "-x -a '(__fish_complete_directories)'",
                "free": "-x",
            }[option.kind]
            if not option.names:
                value = value.replace("-x ", "").replace("-r ", "")
                lines.append(f"complete -c pix2seq {condition} {value}")
                continue
            flags = " ".join(f"-l {each[2:]}" if each.startswith("--") else f"-s {each[1:]}" for each in option.names)
            lines.append(f"complete -c pix2seq {condition} {flags} {value} -d {_quote(option.help)}".replace("  ", " "))
    return "\n".join(lines) + "\n"


FISH = """\
function __pix2seq_is  # nothing but these commands was written
    test "$(commandline -opc)[2..]" = "$argv"
end
function __pix2seq_in  # it begins with these commands
    set -l words (commandline -opc)[2..]
    test (count $words) -ge (count $argv); and test "$words[1..$(count $argv)]" = "$argv"
end"""


def _quote(text: str) -> str:
    """A text in single quotes, as bash, zsh and fish read it."""
    return "'" + text.replace("'", "'\\''") + "'"
