//! Files of the Xet store as streams of bytes from any place on, through hf-xet.

use std::sync::OnceLock;

use xet::xet_session::{
    HeaderMap, HeaderValue, XetConfig, XetDownloadStream, XetDownloadStreamGroup, XetFileInfo,
    XetSession, XetSessionBuilder, header,
};

use super::failure::Failure;

/// Settings of hf-xet that are ours where the environment says nothing: it would take a quarter of the memory for its
/// buffers, and wait for minutes where our plain download can stand in.
const SETTINGS: &[(&str, &str)] = &[
    ("reconstruction.download_buffer_size", "128mb"),
    ("reconstruction.download_buffer_perfile_size", "32mb"),
    ("reconstruction.download_buffer_limit", "256mb"),
    ("reconstruction.min_reconstruction_fetch_size", "64mb"),
    ("reconstruction.min_prefetch_buffer", "128mb"),
    ("client.retry_max_attempts", "3"),
    ("client.retry_base_delay", "1s"),
];

/// hf-xet's session, made when it is first needed, and kept: it has threads of its own.
static SESSION: OnceLock<Option<XetSession>> = OnceLock::new();

fn session() -> Option<XetSession> {
    let session = SESSION.get_or_init(|| {
        let mut config = XetConfig::new();
        for (name, value) in SETTINGS {
            let variable = format!("HF_XET_{}", name.replace('.', "_").to_uppercase());
            if std::env::var_os(variable).is_none() {
                config = config.with_config(name, value).ok()?;
            }
        }
        XetSessionBuilder::new_with_config(config).build().ok()
    });
    session.clone()
}

/// The Xet store as one repository at one commit sees it.
#[derive(Clone)]
pub struct Xet {
    group: XetDownloadStreamGroup,
}

impl Xet {
    /// Whether the user wants it at all.
    pub fn is_wanted() -> bool {
        let off = std::env::var("HF_HUB_DISABLE_XET").unwrap_or_default();
        !["1", "on", "yes", "true"].contains(&off.to_ascii_lowercase().as_str())
    }

    /// `url` is where the Hub gives out tokens of the store, to whoever has `token`.
    pub fn open(url: String, token: Option<&str>) -> Result<Self, Failure> {
        let mut headers = HeaderMap::new();
        let bearer = |token| HeaderValue::from_str(&format!("Bearer {token}")).ok();
        if let Some(mut value) = token.and_then(bearer) {
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let session = session().ok_or_else(|| failed("it cannot be set up"))?;
        let builder = session.new_download_stream_group();
        let group = builder.and_then(|b| b.with_token_refresh_url(url, headers).build_blocking());
        Ok(Self {
            group: group.map_err(|_| failed("it gives no access"))?,
        })
    }

    /// The content from `start` to the end.
    pub fn stream(&self, hash: &str, start: u64, size: u64) -> Result<XetDownloadStream, Failure> {
        let info = XetFileInfo::new(hash.to_string(), size);
        (self.group)
            .download_stream_blocking(info, Some(start..size))
            .map_err(|_| failed("it does not send the file"))
    }
}

/// hf-xet's own words may hold addresses with signatures.
pub fn failed(why: &str) -> Failure {
    Failure::Broken(format!("the Xet store: {why}"))
}
