"""Tests of rewards against answers that game them, and detection of a policy that has begun to game one."""
