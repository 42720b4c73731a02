from llmsched_env.engine.rule cimport Rule
from llmsched_env.engine.view cimport View


cdef class Patience(Rule):
    cdef readonly long long idle_clients
    cdef readonly long long most_decodes
    cdef readonly long long enough
    cdef int act(self, View view) noexcept nogil
