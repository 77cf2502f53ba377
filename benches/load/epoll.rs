//! The kernel's readiness queue, as thin as it gets: thousands of sockets that only drain must cost next to nothing.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What to wait for.
pub const READ: u32 = libc::EPOLLIN as u32;
pub const WRITE: u32 = libc::EPOLLOUT as u32;
/// The peer says no more.
pub const CLOSED: u32 = libc::EPOLLRDHUP as u32;

/// How many events one call takes out.
const EVENTS: usize = 1024;

/// A level-triggered epoll instance.
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: a system call without pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Epoll { fd, events: Vec::with_capacity(EVENTS) })
    }

    /// Watches a socket. It is forgotten when it is closed.
    pub fn add(&self, socket: &impl AsRawFd, token: usize, interest: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, socket, token, interest)
    }

    /// Watches it for something else.
    pub fn modify(&self, socket: &impl AsRawFd, token: usize, interest: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, socket, token, interest)
    }

    fn control(&self, operation: i32, socket: &impl AsRawFd, token: usize, interest: u32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest, u64: token as u64 };
        // SAFETY: `event` outlives the call, which does not keep it.
        match unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, socket.as_raw_fd(), &mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits for this many milliseconds at most, and puts the tokens of what is ready into `ready`.
    pub fn wait(&mut self, ready: &mut Vec<usize>, millis: i32) -> io::Result<()> {
        ready.clear();
        // SAFETY: the buffer has room for EVENTS entries.
        let count =
            unsafe { libc::epoll_wait(self.fd.as_raw_fd(), self.events.as_mut_ptr(), EVENTS as i32, millis) };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        // SAFETY: the kernel has filled in that many.
        unsafe { self.events.set_len(count as usize) };
        ready.extend(self.events.drain(..).map(|event| event.u64 as usize));
        Ok(())
    }
}
