//! The terminal's other screen, until dropped.

use std::io::{self, Stdout};

use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::ExecutableCommand;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::{Frame, Terminal};

/// The terminal, until dropped: also by a panic.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

/// What becomes of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    /// The terminal's own: Ctrl-C is a signal.
    Left,
    /// They come one by one, Ctrl-C too.
    Taken,
}

impl Screen {
    /// Takes the terminal's other screen, so that what stood there comes back at the end.
    pub(super) fn open(keys: Keys) -> io::Result<Self> {
        // What a panic says must not go with the screen.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            close();
            hook(panic);
        }));
        let screen = take(keys);
        if screen.is_err() {
            close();
        }
        screen
    }

    /// Draws it anew.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(draw).map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        close();
    }
}

fn take(keys: Keys) -> io::Result<Screen> {
    if keys == Keys::Taken {
        enable_raw_mode()?;
    }
    let mut out = io::stdout();
    // Cleared, of what somebody killed has left, and here: ratatui would ask the terminal where its cursor is, and wait for what not
    // every terminal says.
    out.execute(EnterAlternateScreen)?.execute(Hide)?.execute(Clear(ClearType::All))?;
    Ok(Screen { terminal: Terminal::new(CrosstermBackend::new(out))? })
}

fn close() {
    // A terminal that is gone needs no restoring.
    let mut out = io::stdout();
    let _ = out.execute(LeaveAlternateScreen);
    let _ = out.execute(Show);
    let _ = disable_raw_mode();
}
