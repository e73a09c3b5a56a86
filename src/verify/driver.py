# Runs the assertions of one test, in a box that model code never enters. The program's functions are stand-ins: a call
# whose result is not known yet is written out and ends this run; the caller has the program make it, in the program's own
# box, and starts again with the result. So the comparison is out of the program's reach.
#
# Standard input: {"source", "defined": {name: is it a class}, "results": {call: value}}. Standard output: one object, {"call"} or
# {"passed"} or {"failed"}.

import random


def say(**what):
    os.write(1, json.dumps(what).encode())
    os._exit(0)


class Function:
    def __init__(self, results, name, init=None, method=None, makes_instances=False):
        self._results, self._name, self._init, self._method = results, name, init, method
        self._makes_instances = makes_instances
        self.__name__ = method or name

    def __call__(self, *arguments, **named):
        if self._makes_instances:
            return Instance(self._results, self._name, [encode(arguments), encode(named)])
        call = json.dumps([self._name, self._init, self._method, encode(arguments), encode(named)])
        if call not in self._results:
            say(call=call)
        return decode(self._results[call])


class Instance:
    def __init__(self, results, name, init):
        self._results, self._name, self._init = results, name, init

    def __getattr__(self, method):
        if method.startswith("__"):
            raise AttributeError(method)
        return Function(self._results, self._name, self._init, method)


def drive():
    data = json.load(sys.stdin)
    sys.stdout = sys.stderr
    # each run must make the same calls
    random.seed(0)
    scope = {"__name__": "__main__"}
    for module in ("math", "collections", "itertools", "random", "re", "typing"):
        scope[module] = __import__(module)
    scope.update(vars(scope["typing"]))
    builtin = set(dir(__import__("builtins")))
    for name, is_class in data["defined"].items():
        # what the assertions themselves compare with is not the program's to replace; a class of the program is equal to
        # nothing of theirs
        if name not in builtin and (name not in scope or is_class and callable(scope[name])):
            scope[name] = Function(data["results"], name, makes_instances=is_class)
    try:
        exec(compile(data["source"], "assertions.py", "exec"), scope)
    except AssertionError as error:
        say(failed=f"assertion failed {error}".strip())
    except BaseException as error:
        say(broken=f"{type(error).__name__}: {error}")
    say(passed=True)


drive()
