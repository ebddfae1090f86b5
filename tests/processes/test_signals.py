"""signals that ask to stop, sent to real processes"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from luthier.processes import signals
from luthier.processes.signals import Signals

PREFACE = """
import os, signal, sys, time
from luthier.processes import signals
signals.ONE_MOMENT_S = 0.3
signal.signal(signal.SIGINT, signal.default_int_handler)
def say(text): print(text, flush=True)
def give_up(why): say(why); os._exit(75)
"""


@pytest.fixture
def process():
    begun: list[subprocess.Popen] = []

    def begin(program: str) -> subprocess.Popen:
        text = PREFACE + textwrap.dedent(program)
        begun.append(
            subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
        )
        assert begun[-1].stdout is not None
        assert begun[-1].stdout.readline() == "ready\n"
        return begun[-1]

    yield begin
    for each in begun:
        each.kill()
        each.wait()


def test_the_first_signal_is_noted_and_told(process):
    program = process(
        """
        with signals.Signals(60, say, give_up) as heard:
            say("ready")
            while heard.asked_by is None:
                time.sleep(0.01)
            heard.answered()
        say(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
        """
    )

    program.send_signal(signal.SIGTERM)

    assert program.communicate(timeout=60)[0].split() == ["SIGTERM", "True"]
    assert program.returncode == 0


def test_a_second_signal_gives_up_even_when_the_main_thread_is_held_up(process):
    program = process(
        """
        import ctypes
        pthread = ctypes.CDLL(None)
        locked = ctypes.create_string_buffer(64)
        pthread.pthread_mutex_lock(locked)
        with signals.Signals(60, say, give_up):
            say("ready")
            pthread.pthread_mutex_lock(locked)  # waits for ever, and no Python handler runs
        """
    )

    program.send_signal(signal.SIGTERM)
    assert program.stdout.readline() == "SIGTERM\n"
    time.sleep(0.5)
    program.send_signal(signal.SIGTERM)

    assert program.communicate(timeout=60)[0] == "SIGTERM came again\n"
    assert program.returncode == 75


def test_a_signal_while_the_process_gives_up_does_not_change_its_exit_code(process):
    program = process(
        """
        def give_up_slowly(why): say(why); time.sleep(0.5); os._exit(75)
        with signals.Signals(60, say, give_up_slowly):
            say("ready")
            while True: time.sleep(0.01)
        """
    )

    program.send_signal(signal.SIGTERM)
    assert program.stdout.readline() == "SIGTERM\n"
    time.sleep(0.5)
    program.send_signal(signal.SIGTERM)
    assert program.stdout.readline() == "SIGTERM came again\n"
    program.send_signal(signal.SIGTERM)

    program.communicate(timeout=60)
    assert program.returncode == 75


def test_signals_within_a_moment_are_one(process):
    program = process(
        """
        signals.ONE_MOMENT_S = 30
        with signals.Signals(60, say, give_up) as heard:
            say("ready")
            time.sleep(1)
        """
    )

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        program.send_signal(number)

    assert program.communicate(timeout=60)[0] in ("SIGINT\n", "SIGTERM\n")
    assert program.returncode == 0


def test_the_time_after_the_first_signal_is_limited(process):
    program = process(
        """
        with signals.Signals(0.2, say, give_up):
            say("ready")
            time.sleep(60)
        """
    )

    program.send_signal(signal.SIGTERM)

    assert "within 0.2 s" in program.communicate(timeout=60)[0]
    assert program.returncode == 75


def test_an_answer_takes_as_long_as_it_takes(process):
    program = process(
        """
        with signals.Signals(0.5, say, give_up) as heard:
            say("ready")
            while heard.asked_by is None:
                time.sleep(0.01)
            heard.answered()
            time.sleep(1)
        """
    )

    program.send_signal(signal.SIGTERM)

    program.communicate(timeout=60)
    assert program.returncode == 0


def test_a_process_that_is_not_ours_ends_as_it_would_have(process):
    program = process(
        """
        try:
            with signals.Signals(60, say):
                say("ready")
                time.sleep(60)
        except KeyboardInterrupt:
            say("interrupted")
        """
    )

    program.send_signal(signal.SIGINT)
    assert program.stdout.readline() == "SIGINT\n"
    time.sleep(0.5)
    program.send_signal(signal.SIGINT)

    assert program.communicate(timeout=60)[0] == "interrupted\n"
    assert program.returncode == 0


def test_a_forked_worker_outlives_the_first_signals(process):
    program = process(
        """
        with signals.Signals(60, say, give_up) as heard:
            worker = os.fork()
            if worker == 0:
                time.sleep(60)
                os._exit(0)
            time.sleep(0.3)
            say("ready")
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
                os.kill(worker, number)
                time.sleep(0.2)
            say(os.waitpid(worker, os.WNOHANG))
            os.kill(worker, signal.SIGTERM)
            say(os.waitpid(worker, 0)[1])
            say(heard.asked_by)
        """
    )

    assert program.communicate(timeout=60)[0].splitlines() == ["(0, 0)", "15", "None"]


def test_signals_that_are_ignored_stay_ignored(process):
    program = process(
        """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        with signals.Signals(60, say, give_up):
            say("ready")
            time.sleep(0.5)
        """
    )

    program.send_signal(signal.SIGHUP)

    assert program.communicate(timeout=60)[0] == ""
    assert program.returncode == 0


def test_another_thread_hears_nothing_and_changes_nothing():
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def look() -> None:
        with Signals(60, seen.append) as heard:
            seen.append(heard.asked_by)
            seen.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()

    assert seen == [None, True]


def test_handlers_and_the_wakeup_are_put_back():
    handlers = [signal.getsignal(getattr(signal, name)) for name in signals.ASKING]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)
    try:
        with Signals(60, print):
            pass

        assert signal.set_wakeup_fd(-1) == writer
        assert [signal.getsignal(getattr(signal, name)) for name in signals.ASKING] == handlers
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)
